"""Timestep experts: one model of diffusers that sends every sample to its timestep group's own network."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from prunekit._types import FloatArray
from prunekit.checkpoint import ModelSpec
from prunekit.conditions import rows_of
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.nets.call_forms import CallForm
from prunekit.nets.drop_in import DropInOutput, Router, scattered
from prunekit.nets.lora import LoraLoading
from prunekit.nets.model_config import full_config, time_unit_of, timeline_of
from prunekit.nets.offloading import offloaded_like
from prunekit.nets.pretrained import Pretrained
from prunekit.nets.reaching import ReachesAll, Setting, asked, is_method
from prunekit.nets.residency import Loader, Shelf, cast
from prunekit.schedule import TimeUnit
from prunekit.slim import SlimModel

__all__ = ["TimestepExperts", "without_weights"]


class TimestepExperts(ReachesAll, Pretrained, ModelMixin, ConfigMixin):  # type: ignore[misc] # diffusers has no types
    """Routes each SAMPLE of a batch to the expert of its timestep's group.

    A model of diffusers: it stands in for a pipeline's ``unet`` or ``transformer``, is saved and loaded with the pipeline, and is
    moved, offloaded and compiled with it. One expert answers what a pipeline asks of its denoiser; what it sets is set in all.
    Groups whose slim models hold the same module share it: it is in memory once, and training it changes all of them.

    Args:
        groups: the partition of the timesteps.
        slims: one slim model for each group, in order.
        resident: ``all`` keeps every expert in memory; ``one`` keeps only the last used expert and loads another when needed.

    Raises:
        InputError: the slim models do not match the groups.
    """

    __module__ = "prunekit"  # the library that a pipeline's model_index.json names
    config_name = "experts.json"
    _supports_gradient_checkpointing = True

    def __init__(self, groups: TimestepGroups, slims: Sequence[SlimModel], resident: str = "all") -> None:
        super().__init__()
        self._like: Tensor
        found = [slim.group for slim in slims]
        if found != list(groups):
            raise InputError(
                f"The slim models serve timestep groups {[(g.index, g.start, g.stop) for g in found]}; "
                f"expected one for each of {[(g.index, g.start, g.stop) for g in groups]}."
            )
        if resident not in ("all", "one"):
            raise InputError(f"Unknown residency {resident!r}; expected 'all' or 'one'.")
        self.groups = groups
        self.about = dict(slims[0].about)
        self.spec: ModelSpec = slims[0].spec
        self.macs = tuple(slim.macs for slim in slims)
        self.params = tuple(slim.params for slim in slims)
        self.resident = resident
        self.networks: tuple[int, ...] = _by_module(slims)
        self._stored = 0
        self._router = Router(groups, time_unit_of(self.about), timeline_of(self.about))
        self._context: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._settings: list[Any] = []
        self._set: dict[int, int] = {}  # number of settings that a network in memory has
        self._told = tuple(without_weights(slim) for slim in slims)
        self.experts = nn.ModuleList([slim.model for slim in slims] if resident == "all" else [])
        self._held: int | None = None  # with ``one``: the network in memory
        models = [slim.model for slim in slims] if resident == "one" else []
        # these still hold all weights; see read_from
        self._shelf = Shelf([lambda model=model: model for model in models])  # type: ignore[misc]
        self._in_memory = resident == "one"
        weight = next(slims[0].model.parameters(), torch.empty(0))
        # follows the module's device and dtype, even while no expert is resident
        self.register_buffer("_like", torch.empty(0, dtype=weight.dtype, device=weight.device), persistent=False)
        self.register_to_config(**full_config(self.spec))

    def __getattr__(self, name: str) -> Any:
        """What only the experts have: values and modules of one of them; methods are called on all."""
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            if "_like" not in self._buffers or (name.startswith("_") and not len(self.experts)):
                raise  # it is being made, or nothing is loaded that could have the attribute
            network = self._any()
            if not asked(type(network), name):
                raise
        if is_method(type(network), name):
            return functools.partial(self.reach, name)
        return getattr(network, name)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._like.device

    @property
    def stored_params(self) -> int:
        """Number of parameters of all experts, where a network that several groups share counts once.

        For experts that were read from a folder of differences, it is the number of values in its files.
        """
        return self._stored or sum(self.params[network] for network in set(self.networks))

    @property
    def resident_params(self) -> int:
        """Number of parameters in memory at a time: all different ones, or with ``resident="one"`` the largest network's."""
        if self.resident == "one":
            return max(self.params)
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def evaluates_alone(self) -> bool:
        """Whether a batch must not be evaluated in parts at the same time, since each part would load its own expert."""
        return self.resident == "one"

    def save(self, folder: Path | str, share: float | None = None) -> None:
        """Write an experts folder, see :func:`prunekit.save_experts`; :func:`prunekit.load_experts` reads it.

        Args:
            folder: folder to write.
            share: tolerance for storing differences from the largest network; None stores every network whole.

        Raises:
            InputError: there is something else in the folder than earlier experts.
        """
        from prunekit.nets.experts_files import save_experts  # noqa: PLC0415 - it imports this module

        save_experts(self.slims, self.groups, folder, share=share)

    @classmethod
    def _read(cls, folder: Path, **options: Any) -> "TimestepExperts":
        from prunekit.nets.experts_files import load_experts  # noqa: PLC0415 - it imports this module

        return load_experts(folder, **options)

    @property
    def slims(self) -> list[SlimModel]:
        """The experts as slim models, ready to be saved, cleanest group first."""
        return [replace(slim, model=self.expert(index)) for index, slim in enumerate(self._told)]

    def mean_macs(self, sampling_steps: Sequence[int] | FloatArray) -> float:
        """Mean MACs per evaluation over a sampler's timesteps."""
        shares = self.groups.shares(np.asarray(sampling_steps, dtype=np.int64))
        return float(shares @ np.array(self.macs, dtype=np.float64))

    def expert(self, index: int) -> nn.Module:
        """The network of a timestep group, loaded if it is not resident."""
        if self.resident == "all":
            return self.experts[index]
        network = self.networks[index]
        if self._held != network:
            self._swap(network)
            self._shelf.expect(self._next(index))
        return self.experts[0]

    def with_time_unit(self, unit: TimeUnit) -> "TimestepExperts":
        """Set the unit in which the pipeline tells its denoiser the time, and store it with the experts from now on.

        Args:
            unit: for Flux ``TimeUnit(0.001)``, for Lumina 2 ``TimeUnit(-0.001, 1.0)``.

        Returns:
            These experts.
        """
        self.about = {**self.about, "time_unit": unit.to_config()}
        self._told = tuple(replace(slim, about={**slim.about, "time_unit": unit.to_config()}) for slim in self._told)
        self._router = Router(self.groups, unit, self._router.timeline)
        return self

    def read_from(self, loaders: Sequence[Loader], folders: Sequence[Path] = ()) -> None:
        """With ``resident="one"``: how networks are read when they are needed.

        Args:
            loaders: one for each timestep group.
            folders: of their files, which are read ahead for the next cleaner timesteps; none are read ahead if missing.
        """
        self._shelf, self._in_memory = Shelf(loaders, folders), False

    def reach(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of every expert; with ``resident="one"`` it is called again for every expert that is loaded later.

        Args:
            name: of the method.
            args: its arguments by place.
            kwargs: its arguments by name.

        Returns:
            What the first expert's method returns.
        """
        return self.set_in_all(Setting(name, args, kwargs))

    def set_in_all(self, setting: Any) -> Any:
        """Change every expert, see :meth:`reach`.

        Args:
            setting: called with a network and its slim model.
        """
        self._any()
        held = [self._held] if self.resident == "one" else list(dict.fromkeys(self.networks))
        found = [setting(self.expert(index), self._told[index]) for index in held if index is not None]
        if self.resident == "one" and found[0] is None:
            self._settings.append(setting)
            self._set |= {} if self._held is None else {self._held: len(self._settings)}
        return found[0]

    def change_all(self, change: Callable[[nn.Module], object]) -> None:
        """Change every expert by a function, such as one that quantises a network; also those that are loaded later.

        Args:
            change: changes a network in place.

        Example:
            >>> from torchao.quantization import Int8WeightOnlyConfig, quantize_  # doctest: +SKIP
            >>> experts.change_all(lambda network: quantize_(network, Int8WeightOnlyConfig()))  # doctest: +SKIP
        """

        def setting(network: nn.Module, _: SlimModel) -> None:
            change(network)

        self.set_in_all(setting)

    def load_lora_adapter(self, weights: Any, prefix: str | None = "transformer", **options: Any) -> None:
        """Load a LoRA of the base onto every expert, cut to the expert's widths; pipelines call it in ``load_lora_weights``.

        Args:
            weights: its tensors by name, or a safetensors file.
            prefix: of the names that belong to the denoiser; None if all do.
            options: as diffusers' ``load_lora_adapter`` takes them.

        Raises:
            InputError: it cannot be cut exactly, or the experts' class takes none.
        """
        self.set_in_all(LoraLoading(weights, prefix, options))

    @contextmanager
    def cache_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Tell the caches of every expert which of a pipeline's calls this is, see diffusers' ``CacheMixin``.

        Args:
            args: of diffusers' method: a name, such as ``cond`` and ``uncond``.
            kwargs: of diffusers' method.
        """
        before, self._context = self._context, (args, kwargs)
        try:
            yield
        finally:
            self._context = before

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator] # experts are compiled, routing is not
    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> DropInOutput | tuple[Tensor]:
        """Predict with each sample's own expert.

        Args:
            args: as the base takes them; the noisy sample, shape (batch, …), comes first.
            return_dict: False returns a tuple.
            kwargs: as the base takes them. ``sample`` and ``hidden_states`` both mean the noisy sample, and ``timestep`` and
                ``timesteps`` what the pipeline tells: a number, or shape (), (1,), (batch,) or (batch, tokens), in the unit of the
                base's pipeline. Fractional ones belong to the group that contains them. Conditions are split like the batch.

        Raises:
            InputError: there are neither one nor as many timesteps as samples, they have another unit, or there are no samples.
        """
        form = self._form
        bound = form.bound(args, kwargs)
        sample, timestep = bound[form.sample], bound[form.timestep]
        if not isinstance(sample, Tensor):
            raise InputError(f"Got a {type(sample).__name__} as {form.sample}; expected a tensor with the batch first.")
        batch, output = len(sample), sample.new_empty(0)
        for index, rows in self._router.routes(timestep, batch, sample.device):  # type: ignore[arg-type]
            own = bound if rows is None else self._split(bound, rows, batch)
            expert = self.expert(index)
            by_place = [own[name] for name in form.order[: len(args)]]
            by_name = {key: value for key, value in own.items() if key not in form.order[: len(args)]}
            with self._cache_of(expert):
                part = expert(*by_place, **by_name, return_dict=False)[0]
            output = scattered(output, part, rows, batch)
        return DropInOutput(output) if return_dict else (output,)

    def _cache_of(self, expert: nn.Module) -> Any:
        if self._context is None or not hasattr(expert, "cache_context"):
            return nullcontext()
        args, kwargs = self._context
        return expert.cache_context(*args, **kwargs)  # type: ignore[operator]

    @functools.cached_property
    def _form(self) -> CallForm:
        return CallForm.of(type(self._any()))

    @functools.cached_property
    def _fixed(self) -> frozenset[str]:
        """Names of arguments that are equal for all samples, such as the places of tokens."""
        try:
            return frozenset(self.spec.calling().fixed)
        except InputError:  # no example inputs can be derived
            return frozenset()

    def _split(self, bound: Mapping[str, object], rows: Tensor, batch: int) -> dict[str, object]:
        """The rows of every argument that has one row for each sample."""
        own = {key: value if key in self._fixed else rows_of(value, rows, batch) for key, value in bound.items()}
        timestep = torch.as_tensor(bound[self._form.timestep])
        own[self._form.timestep] = timestep[rows.to(timestep.device)]
        return own

    def _any(self) -> nn.Module:
        """A network: the resident one, or the noisiest timesteps', where sampling begins."""
        return self.experts[0] if len(self.experts) else self.expert(len(self.groups) - 1)

    def _swap(self, network: int) -> None:
        """Keep another network in memory instead of the one that is there."""
        last = self.experts[0] if len(self.experts) else None
        self.experts = nn.ModuleList()  # frees the last expert before the next is read
        if last is not None and self._in_memory:
            last.to("cpu")  # its loader keeps it
        del last
        found = self._shelf.take(network)
        found = cast(found.train(self.training), self.dtype, self.device)
        for setting in self._settings[self._set.get(network, 0) if self._in_memory else 0 :]:
            setting(found, self._told[network])
        self._set[network] = len(self._settings)
        self.experts, self._held = nn.ModuleList([offloaded_like(found, self)]), network

    def _next(self, index: int) -> int:
        """The network that sampling needs after a timestep group's: the next cleaner one, after the cleanest the noisiest."""
        cleaner = [self.networks[other] for other in range(index - 1, -1, -1)]
        return next((other for other in cleaner if other != self.networks[index]), self.networks[-1])


def _by_module(slims: Sequence[SlimModel]) -> tuple[int, ...]:
    """For each slim model, the index of the first one that holds the same module."""
    modules = [slim.model for slim in slims]
    return tuple(next(other for other, model in enumerate(modules) if model is own) for own in modules)


def without_weights(slim: SlimModel) -> SlimModel:
    """The same slim model with one empty parameter of the same dtype as its network, so that the memory is freed."""
    first = next(slim.model.parameters(), None)
    stub = nn.ParameterList([] if first is None else [torch.empty(0, dtype=first.dtype, device=first.device)])
    return replace(slim, model=stub)
