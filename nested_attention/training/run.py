"""`nested-attention train CONFIG`: the phases of a run one after the other, and the encoder they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache

from ..card import EncoderCard
from ..checkpoint import read_card, read_encoder_config, save_subject_encoder
from ..encoder import SubjectEncoder
from ..errors import NestedAttentionError
from ..hosts.diffusers.processors import SubjectSlot
from ..storage.files import digest_of, replacing
from .checkpoints import checkpoints_in
from .fp8 import hold_in_fp8
from .frozen import DTYPES, load_schedule, load_unet, vision_name
from .keys import first_examples, plain, whiten_keys
from .reading import Place, read_config
from .schedule import Schedule
from .settings import LossSettings, PhaseSettings, StartSettings, TrainSettings
from .shards import Index, Rising, ShardData, verify
from .start import encoder_config, new_encoder
from .subjects import ON_HOST, SubjectNoise, SubjectObjective
from .trainer import Shown, Trainer, TrainerOptions
from .validation import Validation

Resume = Literal["latest", "never"]
Say = Callable[[str], object]


def train_from(path: Path, *, resume: Resume = "latest", say: Say = print) -> Path:
    """Train what a configuration file describes; the file of the encoder."""
    return train(read_config(path, TrainSettings), resume=resume, say=say)


def dry_run_from(path: Path, say: Say = print) -> None:
    """Say what training would take, by building it without any content (`estimate.py`)."""
    from .estimate import estimate, report

    for line in report(estimate(read_config(path, TrainSettings))):
        say(line)


def train(settings: TrainSettings, *, resume: Resume = "latest", say: Say = print) -> Path:
    """Run all phases, and write the averaged encoder; its path.

    A run that was stopped goes on from its last checkpoint. resume `never`: one with checkpoints is refused.
    Raises NestedAttentionError for data that is missing, damaged or of other models, before the first step,
    and for what `Trainer.run` does.
    """
    # The others wait while one of them reads all shards once, and while it draws for a validation.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=3))
    if resume == "never" and any(checkpoints_in(folder) for folder in settings.output.glob("phase-*")):
        raise NestedAttentionError(
            f"{settings.output} has checkpoints of a run; set another `output`, delete the folder, or "
            "resume it"
        )
    indices = [_index(phase, state.num_processes) for phase in settings.phases]
    _check_alike(settings, indices)
    with state.main_process_first():  # whose reading serves all, where what it has read can be noted
        if state.is_local_main_process:
            for phase, index in zip(settings.phases, indices, strict=True):
                verify(phase.data, index)
    tell: Say = say if state.is_main_process else lambda line: None
    _tell_of_vision(settings, indices[-1], tell)
    _tell_of_features(settings.start, indices[0], tell)
    run = _Run(settings, indices, state.device)
    try:
        samples = _seen(settings.start)
        for number in range(len(settings.phases)):
            samples = run.phase(number, samples, tell)
    finally:
        run.slot.remove()
    if state.is_main_process:
        run.export(settings.file, samples, indices[-1])
        tell(f"The encoder: {settings.file.resolve()}")
    state.wait_for_everyone()
    return settings.file


def _seen(start: StartSettings) -> int:
    """How many examples the encoder that a run begins with has seen."""
    return read_card(start.path).samples if start.path is not None and start.projections else 0


def _index(phase: PhaseSettings, processes: int) -> Index:
    """The index of a phase's data."""
    index = Index.read(phase.data)
    if phase.batch % processes:
        raise NestedAttentionError(
            f"batch is {phase.batch}, for {processes} processes together; expected a multiple"
        )
    if not any(not shard.held_out for shard in index.shards):
        raise NestedAttentionError(f"{phase.data} has no examples to train on; prepare more pictures")
    return index


def _check_alike(settings: TrainSettings, indices: list[Index]) -> None:
    """All phases train one encoder, so they must read what the same models made."""
    first = indices[0]
    for phase, index in zip(settings.phases, indices, strict=True):
        for name in ("word", "features", "frozen", "latents"):
            ours, theirs = getattr(first, name), getattr(index, name)
            if ours != theirs:
                raise NestedAttentionError(
                    f"{phase.data} was prepared with another {name} ({theirs}) than "
                    f"{settings.phases[0].data} ({ours}); prepare both with the same model, word and features"
                )


def _tell_of_vision(settings: TrainSettings, index: Index, say: Say) -> None:
    """Say so where a configuration names another vision model than the one that made the features."""
    ours = vision_name(settings.model)
    if settings.model.vision and index.vision and ours != index.vision:
        say(
            f"model.vision is {ours}, and {settings.phases[-1].data} was prepared with {index.vision}, which "
            "the encoder's file will name: training reads features that are there. If they are not one "
            "model, prepare the data again with the one that is meant"
        )


def _tell_of_features(start: StartSettings, index: Index, say: Say) -> None:
    """Say so where a Q-Former is to go on with another layer of the vision model than it has learned to read:
    both are of one width."""
    if start.path is None:
        return
    read = read_encoder_config(start.path).features
    if read != index.features:
        say(
            f"start.path: {start.path} reads {read}, and the data was prepared with {index.features}, which "
            f"its Q-Former has to learn to read anew. To go on with what it can, set `features: {read}` and "
            "prepare the data again"
        )


_IN_8_BITS = "unet in 8 bits"
"""What runs of before noted of a UNet that was held so: how it is held may change within a run."""


class _Run:
    """What the phases share: the frozen UNet, and the encoder that is trained."""

    def __init__(self, settings: TrainSettings, indices: list[Index], device: torch.device) -> None:
        self.settings, self.indices, self.device = settings, indices, device
        unet = load_unet(settings.model, DTYPES[settings.precision])
        sample = ShardData(settings.phases[0].data, indices[0])
        first = sample.read(torch.tensor([0]), {})
        _check_fits(settings, unet, first)
        config = encoder_config(settings.encoder, unet, indices[0], first["features"].shape[-1])
        self.encoder: SubjectEncoder = new_encoder(settings.start, config, unet, seed=settings.seed)
        self.beginning = _beginning(settings.start, unet)
        if settings.fp8:
            hold_in_fp8(unet)
            self.beginning[_IN_8_BITS] = _print(unet)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()  # older versions of diffusers checkpoint in this mode only; SDXL has no dropout
        self.unet = unet.to(device)
        self.slot = SubjectSlot.install(self.unet)
        self.scheduler = load_schedule(settings.model)
        # The schedule's table belongs where steps read it, or the host would copy it at every step.
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)
        self.blank = {name: tensor.to(device) for name, tensor in sample.blank.items()}
        if settings.whiten_keys:
            examples = first_examples(
                sample,
                self._noise(sample),
                batch=settings.phases[0].batch // PartialState().num_processes,
                seed=settings.seed,
                device=device,
                on_host=ON_HOST,
            )
            objective = self.objective(indices[0])
            whiten_keys(self.encoder, self.unet, objective, examples, anew=settings.start.keys_anew)

    def objective(self, index: Index) -> SubjectObjective:
        """What the steps of a phase minimise."""
        return SubjectObjective(
            unet=self.unet,
            slot=self.slot,
            scheduler=self.scheduler,
            blank=self.blank,
            latents=index.latents,
            settings=self.settings.loss,
            precision=DTYPES[self.settings.precision],
        )

    def _noise(self, data: ShardData) -> SubjectNoise:
        timesteps = self.scheduler.config.num_train_timesteps
        return SubjectNoise(self.settings.loss, self.unet.config.in_channels, _largest(data), timesteps)

    def phase(self, number: int, before: int, say: Say) -> int:
        """Train one phase; how many examples have been read by its end. before: in earlier phases."""
        settings, phase, index = self.settings, self.settings.phases[number], self.indices[number]
        folder = settings.output / f"phase-{number + 1}"
        steps = phase.steps_for(sum(len(shard.rows) for shard in index.shards if not shard.held_out))
        data = ShardData(phase.data, index, pair_share=Rising(*settings.loss.pairs, steps * phase.batch))
        objective = self.objective(index)
        self.encoder.qformer.requires_grad_(not phase.freeze_qformer)
        _keep_description(folder, _decisive(settings, phase, index, self.beginning, before))
        processes = PartialState().num_processes
        options = TrainerOptions(
            batch=phase.batch // processes,
            rate=phase.rate,
            ema=settings.ema,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            seed=settings.seed + number,
            save_every=settings.save_every,
            keep=settings.keep,
            validate_every=settings.validation.every,
            workers=settings.workers,
            trackers=settings.trackers,
            parts=settings.parts,
        )
        trainer = Trainer(
            folder,
            {"encoder": self.encoder.to(self.device).train()},
            data,
            objective,
            Schedule(steps, phase.minutes or math.inf, warmup=phase.warmup, decay=phase.decay),
            options,
            loss_weights={"denoise": 1.0},
            precision=DTYPES[settings.precision],
            noise=self._noise(data),
            on_host=ON_HOST,
            validate=self._validation(phase, index, objective, folder, say),
            export=lambda path, samples: self.export(path / "encoder.safetensors", before + samples, index),
        )
        say(
            f"phase {number + 1} of {len(settings.phases)}: {steps:,} steps of {phase.batch} on {processes} "
            f"process{'es' if processes > 1 else ''}, in {folder}"
        )
        trainer.run()
        samples = before + trainer.samples
        del trainer  # with AdamW's state and the average, for which the next phase has no room
        clear_device_cache(garbage_collection=True)
        return samples

    def _validation(
        self, phase: PhaseSettings, index: Index, objective: SubjectObjective, folder: Path, say: Say
    ) -> Callable[[int], Shown] | None:
        data = ShardData(phase.data, index, held_out=True)
        if not self.settings.validation.every:
            return None
        if not len(data):
            say(
                f"no validation: no subject of {phase.data} is held out; prepare four subjects or more, or "
                "set `validation: {every: 0}`"
            )
            return None
        shown = self.settings.validation
        validation = Validation(data, objective, self.encoder, shown, self.settings.model, self.device)

        def validate(step: int) -> Shown:
            figures = validation.figures()
            if not shown.sheet_steps:
                return figures, {}
            return figures, {"held out": validation.save_sheet(folder / "validation", step)}

        return validate

    def export(self, path: Path, samples: int, index: Index) -> None:
        """Write the encoder as nodes load it: in fp16, with all that it says of itself."""
        model = replace(self.settings.model, base=Place(index.base))
        card = EncoderCard(
            domain=index.domain,
            licence=self.settings.licence,
            source=self.settings.source,
            base_model=index.base,
            vision_model=index.vision or vision_name(model),
            samples=samples,
            resolution=index.resolution,
        )
        save_subject_encoder(plain(self.encoder), path, dtype=torch.float16, card=card)


def _largest(data: ShardData) -> int:
    """Side, in latent cells, of a square that holds the latent of every size."""
    firsts = torch.tensor([int(rows[0]) for rows in data.buckets])
    return max(max(data.read(first[None], {})["latent_mean"].shape[-2:]) for first in firsts)


def _check_fits(settings: TrainSettings, unet: Any, batch: Mapping[str, torch.Tensor]) -> None:
    found = {
        "context": (batch["context"].shape[-1], unet.config.cross_attention_dim),
        "latent_mean": (batch["latent_mean"].shape[1], unet.config.in_channels),
    }
    for name, (there, wanted) in found.items():
        if there != wanted:
            raise NestedAttentionError(
                f"{settings.phases[0].data}: {name} is {there} wide, and the UNet of {settings.model.base} "
                f"reads {wanted}; prepare the data with the base model that is trained on"
            )


def _beginning(start: StartSettings, unet: Any) -> dict[str, Any]:
    """What tells a run's start from another, and its UNet."""
    begun = None if start.path is None else digest_of(start.path)
    return {"start": [start.kind, start.projections, begun], "unet": _print(unet)}


def _decisive(
    settings: TrainSettings, phase: PhaseSettings, index: Index, beginning: dict[str, Any], before: int
) -> dict[str, Any]:
    """What a phase is trained on and begins with: other than this, nothing can be gone on with. beginning:
    the run's. before: how many examples were read in earlier phases."""
    return {
        "data": index.digest,
        "batch": phase.batch,
        "freeze_qformer": phase.freeze_qformer,
        "seed": settings.seed,
        "encoder": asdict(settings.encoder),
        "loss": asdict(settings.loss),
        "whiten_keys": settings.whiten_keys,
        **beginning,
        "examples before it": before,
    }


def _print(unet: Any) -> str:
    """Tells a UNet from another of the same shapes: by the first numbers of each of its tensors."""
    digest = sha256()
    for name, tensor in unet.state_dict().items():
        digest.update(name.encode())
        few = tensor.flatten()[:8].to(torch.bfloat16)  # as it is read, whatever the precision
        digest.update(few.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _keep_description(folder: Path, ours: dict[str, Any]) -> None:
    """Note what decides a phase; refuse to go on with something else."""
    ours = json.loads(json.dumps(ours))
    in_8_bits = ours.pop(_IN_8_BITS, None)
    path = folder / "run.json"
    if checkpoints_in(folder) and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        # Runs of before noted less.
        before = {"whiten_keys": False, "freeze_qformer": False, **before}
        before["loss"] = {**asdict(LossSettings()), **before.get("loss", ours["loss"])}
        if in_8_bits is not None and before.get("unet") == in_8_bits:
            before["unet"] = ours["unet"]
        changed = [name for name in ours if name in before and before[name] != ours[name]]
        if changed:
            raise NestedAttentionError(
                f"{folder} was trained with another {', '.join(changed)} than the configuration has now "
                f"({'; '.join(f'{name}: {before[name]} then, {ours[name]} now' for name in changed)}). "
                "Put them back, or set another `output`"
            )
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
    PartialState().wait_for_everyone()
