"""DeepSpeed's engine, and the three things it holds: served weights, float32 master weights, optimizer moments.

This is the only module that knows how a ZeRO stage lays them out. Weights are replaced in place, so that one engine
lives as long as the process: `deepspeed.initialize` runs once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import timedelta
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfloop.actors.train.model.adapters import Base, merged, plain
from selfloop.actors.train.model.architecture import build, prove
from selfloop.workflows.errors import TrainerError

if TYPE_CHECKING:
    from selfloop.actors.train.model.logprobs import Extra
    from selfloop.actors.train.rows.micro import Micro
    from selfloop.actors.train.spec import TrainerSpec

__all__ = ["MOMENTS", "Sharded", "join_group"]

MOMENTS = ("exp_avg", "exp_avg_sq")
PREFIX = "model."
MINUTES = 10  # that ranks wait for each other: a large model is read that long from a slow disk


def join_group(device: str, rank: int, world: int, master: tuple[str, int]) -> None:
    """Meet the other ranks. One rank alone opens no port; ranks of one machine meet on loopback only."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("LOCAL_RANK", "0")
    dist: Any = torch.distributed
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (rank, world):
            raise TrainerError(
                f"this process is already rank {dist.get_rank()} of {dist.get_world_size()} in torch.distributed and "
                f"cannot become rank {rank} of {world}. Start the trainer in a process of its own"
            )
        return
    timeout = timedelta(minutes=MINUTES)
    if world == 1:
        store: Any = dist.HashStore()
    else:
        host, port = master
        if host in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        listen = {"master_listen_fd": _listen(host, port), "use_libuv": False} if rank == 0 else {}
        store = dist.TCPStore(host, port, world, rank == 0, timeout, wait_for_workers=False, **listen)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=world, timeout=timeout
    )


def _listen(host: str, port: int) -> int:
    """A listening socket bound to this address alone (the store by itself would listen on all of them)."""
    listener = socket.create_server((host, port), backlog=128)
    listener.setblocking(True)
    return listener.detach()


class Sharded:
    """The model under a ZeRO stage.

    In bfloat16, stage 0 runs as stage 1: the same result, with the master weights in shards. params: every weight under
    its Hugging Face name. trained: what the optimizer updates, by its own name: all of params, or the adapters (and a
    scalar head), which are then in the served weights as long as `adapting` is true. base: what adapters stand on.
    """

    def __init__(self, spec: TrainerSpec, world: int, head: bool = False):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # a C++ build for inference collectives
        )
        self.spec, self.world, self.head = spec, world, head
        self.device = torch.device(spec.device)
        self.stage = max(spec.zero, 1) if spec.dtype == "bfloat16" else spec.zero
        self.norm: Tensor | None = None
        self.flat: bool | None = None
        built = build(spec, head)
        self.pairs, self.dropouts = built.pairs, built.dropouts
        self.adapting, self.base = bool(built.pairs), Base("", "")
        module = built.module
        optimizer = self._optimizer(module)
        with redirect_stdout(StringIO()):  # some of its optimizers print their memory
            engine: Any = deepspeed.initialize(
                model=module, optimizer=optimizer, config=self._config(module), dist_init_required=False
            )[0]
        self.engine = engine
        self.optimizer: Any = engine.optimizer
        self.module: Any = engine.module
        self.inner: Any = engine.basic_optimizer
        named: dict[str, Any] = {
            name.removeprefix(PREFIX): param for name, param in self.module.named_parameters()
        }
        self.trained = {name: param for name, param in named.items() if param.requires_grad}
        self.params = {plain(name): param for name, param in named.items() if ".lora_" not in name}
        self.drop(False)
        self._make_moments()

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """AdamW. Vectors (norms, biases) are not decayed."""
        spec = self.spec
        params = [param for param in module.parameters() if param.requires_grad]
        groups: list[dict[str, Any]] = [{"params": params, "weight_decay": 0.0}]
        if spec.weight_decay:
            groups = [
                {"params": [p for p in params if p.dim() > 1], "weight_decay": spec.weight_decay},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ]
        optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)
        if self.stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        return optimizer

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Stage 0 leaves clipping to us, which also gives the norm before the step."""
        params = [param for group in optimizer.param_groups for param in group["params"]]
        limit = self.spec.clip if self.spec.clip is not None else float("inf")
        self.norm = nn.utils.clip_grad_norm_(params, limit)

    def _config(self, module: nn.Module) -> dict[str, Any]:
        """configs/deepspeed/zeroN.json, with what depends on the run."""
        config = json.loads(
            files("selfloop.configs").joinpath(f"deepspeed/zero{self.stage}.json").read_text("utf-8")
        )
        config |= {"train_batch_size": self.world, "train_micro_batch_size_per_gpu": 1}
        config |= {"gradient_accumulation_steps": 1, "steps_per_print": 2**62}  # it prints nothing
        config |= {"gradient_clipping": self.spec.clip or 0.0 if self.stage else 0.0}
        if self.stage:
            size = sum(param.numel() for param in module.parameters())
            bucket = config["zero_optimization"].get("reduce_bucket_size", size)
            config["zero_optimization"]["reduce_bucket_size"] = min(bucket, max(size, 1))
        if self.spec.dtype == "bfloat16":
            config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        return config

    # ---- one optimizer step

    def outputs(
        self, micro: Micro, what: str = "logprobs", draw: int | None = None, extra: Extra | None = None
    ) -> Tensor:
        """(trained,) log-probs or values, or (sequences,) rewards, float32, and what `extra` makes behind them. draw: seed of
        the dropout; None: nothing is dropped."""
        self.drop(draw is not None)
        if draw is not None:
            torch.manual_seed(draw)
        index = micro.ends if what == "rewards" else micro.index
        return self.engine(micro.input_ids, index, micro.targets, micro.layout, extra)

    def drop(self, on: bool) -> None:
        """Dropout on or off, in these modules alone: what is below them keeps its mode."""
        for module in self.dropouts:
            module.training = on

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients. DeepSpeed averages over ranks; the loss is a sum over them, hence the factor."""
        self.engine.backward(loss * self.world)

    def step(self, lr: float) -> float:
        """Reduce, clip, update. Returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = self.norm if self.stage == 0 else self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    # ---- optimizer moments

    def _flats(self) -> list[Tensor]:
        """The tensors that the inner optimizer updates."""
        if self.stage == 0:
            return list(self.trained.values())
        names = (
            "fp32_partitioned_groups_flat",
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
        )
        return list(next(getattr(self.optimizer, name) for name in names if hasattr(self.optimizer, name)))

    def _make_moments(self) -> None:
        """Make the moments now, as AdamW would at its first step, so that they can be reset and loaded in place."""
        for flat in self._flats():
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self.inner.state[flat] = {"step": step, **moments}
        if self.stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def reset_moments(self, step: float = 0.0) -> None:
        """A fresh optimizer; or, before `load_moments`, one at this step."""
        for state in self.inner.state.values():
            state["step"].fill_(step)
            for name in MOMENTS:
                state[name].zero_()

    def moment_step(self) -> float:
        """Optimizer steps since the last reset."""
        return float(next(iter(self.inner.state.values()))["step"])

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """(name/moment, full tensor) of all that is trained. All ranks must take all of them."""
        for name, param in self.trained.items():
            for moment in MOMENTS:
                yield f"{name}/{moment}", self._full(param, moment)

    @torch.no_grad()
    def load_moments(self, read: Callable[[str], Tensor], step: float) -> None:
        """Replace the moments by full tensors that `read(name/moment)` gives."""
        self.reset_moments(step)
        for name, param in self.trained.items():
            for moment in MOMENTS:
                self._write_master(param, read(f"{name}/{moment}"), moment)

    # ---- weights

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, under Hugging Face names; a tied head is left out."""
        return {name: shape_of(param) for name, param in self.params.items()}

    @torch.no_grad()
    def load(
        self, read: Callable[[str], Tensor], masters: bool, adapters: Callable[[str], Tensor] | None = None
    ) -> None:
        """Replace the served weights, and with `masters` what training continues from, by what `read(name)` gives.

        adapters: gives the tensors of the adapters on these weights; None: they change nothing until the next load.
        """
        if self.stage == 3:
            self.optimizer._partition_all_parameters()
        for name, param in self.params.items():
            self._write(name, param, read(name), masters and param.requires_grad)
        for name, param in self.trained.items() if self.pairs else ():
            if ".lora_" in name and (adapters is not None or ".lora_B." in name):
                value = adapters(name) if adapters else torch.zeros(shape_of(param))
                self._write(name, param, value, masters and adapters is not None)
        self.adapting = adapters is not None
        if self.stage == 3 and self.optimizer.persistent_parameters:
            self.optimizer.persistent_parameters[0].all_gather(self.optimizer.persistent_parameters)
        if self.flat is None:
            self.flat = prove(self.module, self.device)

    def _write(self, name: str, param: Any, value: Tensor, master: bool) -> None:
        """Replace one served weight, and its master."""
        if tuple(value.shape) != shape_of(param):
            raise TrainerError(
                f"tensor {name} has shape {tuple(value.shape)} in the checkpoint, but {shape_of(param)} in the "
                f"architecture of {self.spec.model}. A train node starts from checkpoints of the run's own architecture "
                "(and adapters of its own trainer.lora.rank)"
            )
        if master and self.stage:
            self._write_master(param, value, None)
        if self.stage == 3:
            share = _share(value, param.ds_tensor.numel(), torch.distributed.get_rank())
            param.ds_tensor.data.copy_(share)
        else:
            param.data.copy_(value)

    def served(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full tensor on the CPU, in serving precision, adapters merged). All ranks must take all of them."""
        import deepspeed

        for name, param in self.params.items():
            if self.stage == 3:
                with deepspeed.zero.GatheredParameters([param]):
                    value = param.data.detach().cpu().clone()
            else:
                value = param.data.detach().cpu()
            pair = self.pairs.get(name) if self.adapting else None
            if pair is not None:
                a, b = (self._full(self.trained[side], None) for side in (pair.a, pair.b))
                value = merged(value, a, b, pair)
            yield name, value

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, full float32 master weight on the CPU) of all that is trained. All ranks must take all of them."""
        for name, param in self.trained.items():
            yield name, self._full(param, None)

    def _full(self, param: Any, moment: str | None) -> Tensor:
        """A master weight or a moment, whole."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            return (param.data if moment is None else self.inner.state[param][moment]).detach().cpu()
        value = safe_get_full_optimizer_state(param, moment) if moment else safe_get_full_fp32_param(param)
        assert value is not None
        return value.detach().cpu()

    def _write_master(self, param: Any, value: Tensor, moment: str | None) -> None:
        """This rank's share of a master weight or a moment."""
        if self.stage == 0:
            (param.data if moment is None else self.inner.state[param][moment]).copy_(value)
        elif self.stage == 3:
            place, _ = self.optimizer._get_fp32_opt_state_partition(param, True, optim_state_key=moment)
            place.copy_(_share(value, place.numel(), torch.distributed.get_rank()))
        else:
            fragment = getattr(param, "_hp_mapping", None)
            if fragment is not None:
                at = fragment.lp_fragment_address
                flat = value.reshape(-1)[at.start : at.start + at.numel]
                fragment.get_hp_fragment(moment).copy_(flat)


def shape_of(param: Any) -> tuple[int, ...]:
    """A parameter's shape, also where it is sharded."""
    return tuple(getattr(param, "ds_shape", param.shape))


def _share(value: Tensor, size: int, rank: int) -> Tensor:
    """A rank's equal share of a tensor, flat, with zeros behind its end."""
    part = value.reshape(-1)[rank * size : (rank + 1) * size]
    return torch.cat([part, part.new_zeros(size - len(part))]) if len(part) < size else part
