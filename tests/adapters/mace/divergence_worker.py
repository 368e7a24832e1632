"""One of two ranks of a training; the second alone comes to NaN."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from test_divergence import DivergenceError, batch, toy
from torch.nn.parallel import DistributedDataParallel

from sog_longrange import NotFiniteError


def refuse(*_):
    raise NotFiniteError("`features` must be finite.")


def train_until_nan(case, folder, rank):
    folder = Path(folder) / case
    training, data = toy(folder, batch(), distributed=True, device="cpu")
    options, state = training.options, SimpleNamespace(state_dict=dict)
    model = DistributedDataParallel(options["model"])
    state = SimpleNamespace(model=state, optimizer=state, lr_scheduler=state)

    def train(checkpoint_handler, optimizer, loss_fn, **_):
        for epoch in range(2):
            spoilt = case if (rank, epoch) == (1, 1) else None
            with training.train_epoch(epoch):
                optimizer.zero_grad()
                if spoilt == "features":
                    options["model"].register_forward_hook(refuse)
                loss_fn(pred=model(data), ref=torch.nan if spoilt else 0.0).backward()
                optimizer.step()
            if rank == 0:
                checkpoint_handler.save(state, epoch, False)
            dist.barrier()

    try:
        training.run(train)
    except DivergenceError as error:
        print(f"{error} | {training.stages(restarted=False)}")


def main(folder, rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for case in ("loss", "features"):
        train_until_nan(case, folder, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
