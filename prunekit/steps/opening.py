"""Opens any kind of model: a base checkpoint, or a folder of diffusers, a slim model, experts or several decoders."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from prunekit._json import JsonDict, read_json
from prunekit._leftovers import restore
from prunekit.checkpoint import Asked, ModelSpec, read_inputs
from prunekit.cost import MacCount, count_macs
from prunekit.data import ImageSplit
from prunekit.errors import InputError, PrunekitError
from prunekit.groups import TimestepGroups, make_groups
from prunekit.nets import MultiDecoderUNet, TimestepExperts, is_multi_decoder, load_experts, load_multi_decoder
from prunekit.recipe import DataOptions
from prunekit.sampling import Sampler, make_sampler
from prunekit.schedule import Parameterization, Parameterized
from prunekit.slim import load_slim
from prunekit.steps.bases import open_base
from prunekit.steps.budgets import evaluations
from prunekit.steps.data_shapes import at_shapes_of
from prunekit.steps.image_choice import check_told_nothing, images_for, sampled_classes

__all__ = ["Opened", "is_base", "open_model"]


@dataclass(frozen=True, eq=False)
class Opened(Parameterized):
    """A model of any kind, ready for sampling, measuring or counting.

    Args:
        model: called as ``model(x, t)``.
        spec: the (unpruned) architecture.
        parameterization: noise schedule, and what the network predicts.
        groups: timestep groups of an experts folder; five uniform ones for any other model.
        data: the checkpoint's record of the images that it was trained on.
    """

    model: nn.Module
    spec: ModelSpec
    parameterization: Parameterization
    groups: TimestepGroups
    data: JsonDict

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of one forward pass at batch 1."""
        inputs: dict[str, Tensor] = self.spec.example_inputs()
        return inputs

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (channels, height, width), (tokens, channels) or (channels, frames, height, width)."""
        inputs = self.inputs
        sample = inputs.get("sample", inputs.get("hidden_states"))
        return tuple(sample.shape[1:]) if isinstance(sample, Tensor) else ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width).

        Raises:
            InputError: the network makes no images.
        """
        if len(self.sample_shape) != 3:
            raise InputError(
                f"{self.spec.class_name} makes no images of channels, height and width; expected such a model, as UNet2DModel is."
            )
        channels, height, width = self.sample_shape
        return channels, height, width

    @property
    def latent(self) -> bool:
        """Whether it makes a codec's latents: the checkpoint says so, or knows no images and has neither 1 nor 3 channels."""
        return self.data.get("kind") == "latents" or (not self.data and self.shape[0] not in (1, 3))

    def sampler(self, name: str, steps: int, label: int | None = None) -> Sampler:
        """A sampler for it, for one class or for all classes.

        Raises:
            InputError: the sampler is unknown, there is no such class, or the network takes other conditions.
        """
        check_told_nothing(self.spec, "name its pipeline by `pipeline` and a file of captions by `prompts`")
        sampler = make_sampler(name, steps, self.parameterization, self.shape)
        classes = sampled_classes(self.spec)
        if label is not None and label not in classes:
            expected = f"0 … {len(classes) - 1}" if classes else "no class, since the model takes none"
            raise InputError(f"Got class {label}; expected {expected}.")
        sampler = sampler.of_classes(classes if label is None else [label])
        return sampler.for_latents() if self.latent else sampler

    def images(self, override: DataOptions | None = None, near: Path | str | None = None) -> ImageSplit:
        """The images that the model was trained on, or others; see :func:`prunekit.steps.image_choice.images_for`."""
        return images_for(self.data, self.spec, override, near)

    def at(self, images: ImageSplit) -> "Opened":
        """The same model, whose costs are counted at the shapes of some encoded images."""
        return replace(self, spec=at_shapes_of(self.spec, images.train))

    def parts(self) -> dict[str, nn.Module]:
        """Networks by name: one for each timestep group of experts and multi-decoder networks, otherwise the model alone."""
        if isinstance(self.model, TimestepExperts):
            return {f"group-{group.index}": self.model.expert(group.index) for group in self.groups}
        if isinstance(self.model, MultiDecoderUNet):
            return {f"stage-{group.index}": self.model.stage(group.index) for group in self.groups}
        return {"": self.model}

    def mean_macs(self, sampler: str, steps: int) -> float:
        """Mean MACs per evaluation over a sampler's steps."""
        if isinstance(self.model, TimestepExperts | MultiDecoderUNet):
            return self.model.mean_macs(evaluations(self.schedule, sampler, steps))
        return float(count_macs(self.model, self.inputs).macs)

    def mean_cost(self, counted: Mapping[str, MacCount], sampler: str = "ddim", steps: int = 50) -> dict[str, object]:
        """Costs of several parts: mean MACs over a sampler's steps, and all parameters, where shared ones count once."""
        shares = dict(zip(counted, self.groups.shares(evaluations(self.schedule, sampler, steps)), strict=True))
        macs = sum(float(shares[name]) * count.macs for name, count in counted.items())
        uncounted: dict[str, int] = {}
        seen: set[int] = set()
        for count in counted.values():
            for operator, calls in count.uncounted.items():
                uncounted[operator] = uncounted.get(operator, 0) + calls
        return {
            "macs": macs,
            "flops": 2 * macs,
            "params": sum(size for part in self.parts().values() for size in _sizes(part, seen)),
            "by_module": {
                f"{name}.{module}" if module else name: value
                for name, count in counted.items()
                for module, value in count.by_module.items()
            },
            "uncounted": uncounted,
            "experts": {name: {"macs": count.macs, "params": count.params} for name, count in counted.items()},
            "mean_over": f"{steps} steps of {sampler}",
        }


def _sizes(part: nn.Module, seen: set[int]) -> Iterator[int]:
    """Sizes of a network's parameters, without those already seen in another part."""
    for parameter in part.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter.numel()


def open_model(
    source: str, config: Path | str | None = None, inputs: Path | str | None = None, asked: Asked | None = None
) -> Opened:
    """Open a model by path, or an embedded one (``embedded:digits``, ``embedded:fashion``).

    Args:
        source: file, folder, id on the Hugging Face Hub, or name of an embedded base.
        config: as for :func:`open_base`; only for bases, like ``inputs`` and ``asked``.
        inputs: as for :func:`open_base`.
        asked: as for :func:`open_base`.

    Raises:
        InputError: ``asked`` was given for a model that is not a base.
    """
    path = Path(source)
    restore(path)
    if is_base(source):
        base = open_base(source, config, inputs, asked)
        return _opened(base.model, base.spec, base.about(), None)
    if asked is not None:
        raise InputError(
            f"{source} is no base and says itself what its weights and its noise schedule are; leave out `weights`, "
            "`noise_schedule` and `prediction_type`."
        )
    if (path / "experts.json").is_file():
        experts = load_experts(path)
        return _opened(experts, experts.spec, experts.about, experts.groups)
    if is_multi_decoder(path):
        net, slim = load_multi_decoder(path)
        return _opened(net, net.stage_spec(), slim.about, net.groups)
    slim = load_slim(path, inputs=None if inputs is None else read_inputs(inputs))
    return _opened(slim.model, slim.spec, slim.about, None)


def is_base(source: str) -> bool:
    """Whether a name stands for a base, rather than a folder of experts, several decoders or a slim model."""
    path = Path(source)
    if (path / "experts.json").is_file() or is_multi_decoder(path):
        return False
    if not ((path / "config.json").is_file() and (path / "model.safetensors").is_file()):
        return True
    try:
        return "_class_name" in read_json(
            path / "config.json", infinities=True
        )  # a diffusers network saved by accelerate
    except PrunekitError:
        return False


def _opened(model: nn.Module, spec: ModelSpec, about: JsonDict, groups: TimestepGroups | None) -> Opened:
    kind = Parameterization.from_config(about)
    return Opened(model, spec, kind, groups or make_groups(kind.schedule), about.get("data", {}))
