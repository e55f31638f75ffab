"""Models sharded from outside by PyTorch's FSDP, in two processes: outputs, reports and gradients are those of one."""

import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from isoform.model.auxiliary import Auxiliary
from isoform.model.block import Block
from isoform.model.config import ModelConfig
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer
from models import FORMS, VOCAB, build, pair


def layerwise(form: ModelConfig) -> ModelConfig:
    """An encoder-decoder whose decoder attends jointly to the encoder's keys of the same layer."""
    both = pair(form)
    return replace(both, decoder=replace(both.decoder, cross="joint", memory_layers="layerwise"))


CASES = {
    "gated": FORMS["gated"],
    "grouped": FORMS["grouped"],
    "shaw": FORMS["shaw"],
    "shortcuts": FORMS["shortcuts"],
    "n-grams": FORMS["n-grams"],
    "tied": FORMS["gpt2"],
    "experts": FORMS["experts"],
    "routed depth": FORMS["routed depth"],
    "exits": FORMS["exits"],
    "recurrence and attention": FORMS["recurrence and attention"],
    "encoder-decoder": pair(FORMS["buckets"]),
    "layerwise": layerwise(FORMS["plain"]),
}


def run(model: Transformer, config: ModelConfig) -> tuple[torch.Tensor, Auxiliary]:
    """One forward and backward pass; gives the logits and what was reported beside them."""
    torch.manual_seed(1)
    ids = torch.randint(VOCAB, (2, 8))
    source = torch.randint(VOCAB, (2, 5)) if config.encoder is not None else None
    auxiliary = Auxiliary(recorder_of(["*.exits.*", "*.mixer.values"]))
    hidden = model.hidden(ids, source=source, auxiliary=auxiliary)
    logits = model.logits(hidden)
    exits = [t.square().mean() for name, t in auxiliary.recorder.tensors.items() if "exits" in name]
    sum([logits.square().mean(), *exits, *auxiliary.losses.values()]).backward()
    return logits, auxiliary


def work(rank: int, config: ModelConfig, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole, sharded = build(config).train(), build(config).train()
    for module in sharded.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for method in sharded.methods:
        register_fsdp_forward_method(sharded, method)
    (logits, reported), (expected, wanted) = run(sharded, config), run(whole, config)
    close = torch.testing.assert_close
    close(logits, expected)
    assert reported.losses.keys() == wanted.losses.keys()
    for name, loss in wanted.losses.items():
        close(reported.losses[name], loss)
    assert [load.tolist() for load in reported.loads.values()] == [load.tolist() for load in wanted.loads.values()]
    assert reported.recorder.tensors.keys() == wanted.recorder.tensors.keys() != set()
    for name, tensor in wanted.recorder.tensors.items():
        close(reported.recorder.tensors[name], tensor)
    num_gradients = 0
    for (name, parameter), shard in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        if parameter.grad is not None:
            assert shard.grad is not None, name
            close(shard.grad.full_tensor(), parameter.grad)
            num_gradients += 1
    assert num_gradients > 10
    dist.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # nothing is written into a memory's keys
@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does(name, tmp_path):
    mp.start_processes(work, (CASES[name], str(tmp_path)), nprocs=2, start_method="fork")
