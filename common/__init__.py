"""What every program needs and that knows nothing of networks: errors, files, checks, command lines, run folders,
torch.distributed.
"""
