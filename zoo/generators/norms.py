"""Norms and initial weights of generators and discriminators."""

from torch import Tensor, nn

NORMS = ("batch", "instance", "none")


class NoNorm(nn.Module):
    """The identity. torch.fx sees through it, so a convolution and its ReLU stay one group.

    nn.Identity would part them.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x


def with_norm(model: nn.Module, norm: str) -> nn.Module:
    """Replace the model's batch norms, in place, by instance norms without weights (as published) or by biases."""
    for parent in [*model.modules()] if norm != "batch" else ():
        for name, module in parent.named_children():
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, name, nn.InstanceNorm2d(module.num_features) if norm == "instance" else NoNorm())
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is None and norm == "none":
                module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    return model


def init_weights(model: nn.Module) -> nn.Module:
    """The published initialisation, in place."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return model
