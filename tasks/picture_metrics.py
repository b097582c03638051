"""How near made pictures are to the wanted ones, pixel by pixel: L1, PSNR and SSIM of pairs."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from common import distributed
from common.errors import UserError

MOST_PSNR = 100.0  # dB; of equal pictures it would be infinite, and so would be every mean with it


class PairMetrics:
    """Means over pairs of images (N, 3, H, W) in [-1, 1], in batches of any size and on any number of ranks.

    l1    mean absolute difference, as a share of the full range
    psnr  in dB, at most MOST_PSNR
    ssim  of Wang et al. (IEEE Transactions on Image Processing 13, 2004), by channel: a Gaussian window of 11 pixels
          with sigma 1.5, images reflected at their borders
    """

    def __init__(self):
        self._sums = torch.zeros(4, dtype=torch.float64)  # of l1, psnr, ssim, and how many pairs

    @torch.inference_mode()
    def update(self, made: Tensor, wanted: Tensor) -> None:
        """Add a batch of pairs."""
        made, wanted = ((x.float().clamp(-1, 1) + 1) / 2 for x in (made, wanted))  # SSIM is for brightness from 0 on
        for pair in zip(made.split(1), wanted.split(1), strict=True):  # one by one SSIM is twice as quick
            l1 = (pair[0] - pair[1]).abs().mean()
            psnr = peak_signal_noise_ratio(*pair, data_range=1.0).clamp(max=MOST_PSNR)
            ssim = structural_similarity_index_measure(*pair, data_range=1.0)
            self._sums += torch.stack([l1, psnr, ssim, torch.ones_like(l1)]).double().cpu()

    def compute(self) -> dict[str, float]:
        """The means over the pairs of all ranks. Raises UserError where there are none."""
        *sums, count = distributed.sum_(self._sums.clone()).tolist()
        if not count:
            raise UserError("data_root: there are no pictures to compare; add some")
        return {name: round(value / count, 6) for name, value in zip(("l1", "psnr", "ssim"), sums, strict=True)}
