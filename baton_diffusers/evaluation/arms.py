"""Arms of an ablation: checkpoints and ways to use them, scored on the same scenes from the same noise, in one table."""

from __future__ import annotations

import hashlib
import inspect
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import UMT5EncoderModel

from .. import guiders
from ..files import read_text
from ..models.component_files import load_component
from ..models.transformer_dual_branch import DualBranchTransformer
from ..schedulers import lead_schedulers
from ..stage.scene import TIERS
from ..stage.scoring import ClipScore, Fact
from .bootstrap import Estimate, bootstrap, ratio
from .kept import KeptScores
from .plan_variants import PLAN_ROPES, SHEET_LENGTH, load_planner, set_plan_rope
from .scores import (
    ASPECTS,
    CUES,
    GIVEN_ASPECTS,
    PLANNED,
    PLANS,
    Example,
    check_direction,
    figure_parts,
    format_estimate,
    generated_clips,
    markdown_table,
    reconstructed_clips,
    scored_batches,
    summarise,
)


if TYPE_CHECKING:
    from ..guiders import AnchorGuidance
    from ..pipelines.pipeline_baton import BatonPipeline
from ..pipelines.students import find_student


_MAX_FILE_BYTES = 2**20
FIGURES = {"p_acc": "P-Acc", "p_acc_made": "made", "m_wer": "M-WER", "desync": "DeSync (s)"}

# The components that each source of plans needs, besides the ones that every clip needs.
PARTS_OF_PLANS = {
    "planner": ("planner", "planner_tokenizer"),
    "none": (),
    "ground truth": ("video_semantic_encoder", "audio_semantic_encoder"),
    "sheet as text": ("planner", "planner_tokenizer"),
}


@dataclass(frozen=True)
class Arm:
    """
    One row of an ablation for each tier.

    Args:
        name: What the table calls it.
        models: Folders or Hub ids of its checkpoints, one for each training seed. Their scores are pooled.
        transformer: Folders that `examples/train_transformer.py` exports, one for each seed. Their `transformer` and `text_encoder`
            replace the checkpoint's; `models` then names one checkpoint.
        planner: A folder that `examples/train_planner.py` exports. It replaces the checkpoint's planner.
        against: Names of earlier arms to compare with; by default the first arm of the same direction.
        direction: What is given and what is made, see [`generated_clips`].
        given_from: Whose clip is given, see [`generated_clips`].
        plan: Where plans come from, see [`generated_clips`].
        cues: Of a planner that knows timestamps, see [`generated_clips`].
        plan_rope: How the plan layers rotate, as the transformer was trained, see [`set_plan_rope`].
        text: Whether the denoiser reads the prompt. If not, it follows the plan alone.
        guidance: A published scheme, a name of `guiders.presets`. It replaces the checkpoint's guiders.
        guider: A video guider of its own: `class`, a name in `baton_diffusers.guiders`, and its arguments. Without `class`, the
            arguments replace the scheme's own.
        audio_guider: The same for the audio.
        student: Folder or Hub id of an adapter with a preset, see `BatonPipeline.load_student`.
        steps: Denoising steps; by default the command's, or else the checkpoint's.
        lead: Fraction of the schedule by which the video runs ahead of the audio (behind it, if negative), see
            [`~schedulers.lead_schedulers`]; the shifts stay the checkpoint's.
        shuffle_prompts: The control, see [`generated_clips`].
        codec_only: Generate nothing, but score the scenes' own renders after both autoencoders: the ceiling, see
            [`reconstructed_clips`].
    """

    name: str
    models: tuple[str, ...]
    transformer: tuple[str, ...] = ()
    planner: str | None = None
    against: tuple[str, ...] = ()
    direction: str = "t2av"
    given_from: str = "render"
    plan: str = "planner"
    cues: str = "written"
    plan_rope: str = "full"
    text: bool = True
    guidance: str | None = None
    guider: dict[str, Any] | None = None
    audio_guider: dict[str, Any] | None = None
    student: str | None = None
    steps: int | None = None
    lead: float | None = None
    shuffle_prompts: bool = False
    codec_only: bool = False

    def __post_init__(self):
        if not self.models:
            raise ValueError(f"the arm {self.name!r} has no `models`: name at least one checkpoint.")
        if self.transformer and len(self.models) > 1:
            raise ValueError(
                f"the arm {self.name!r} has {len(self.models)} `models`, and `transformer` beside them: name the one checkpoint "
                "that gives all else."
            )
        if self.plan not in PLANS:
            raise ValueError(f"the arm {self.name!r} has the `plan` {self.plan!r}: choose one of {PLANS}.")
        if self.cues not in CUES or (self.cues != "written" and self.plan not in PLANNED):
            raise ValueError(
                f"the arm {self.name!r} has the `cues` {self.cues!r} with the `plan` {self.plan!r}: choose one of {CUES}, and "
                '"planner" or "sheet as text".'
            )
        if self.plan_rope not in PLAN_ROPES:
            raise ValueError(
                f"the arm {self.name!r} has the `plan_rope` {self.plan_rope!r}: choose one of {', '.join(PLAN_ROPES)}."
            )
        if self.student is not None and (
            self.codec_only or any(v is not None for v in (self.guidance, self.guider, self.audio_guider, self.lead))
        ):
            raise ValueError(
                f"the arm {self.name!r} has a `student`, which brings its guiders and schedulers: leave out `guidance`, `guider`, "
                "`audio_guider`, `lead` and `codec_only`."
            )
        if not self.text and self.plan in ("none", "sheet as text"):
            raise ValueError(f"the arm {self.name!r} has neither text nor plan: there is nothing to follow.")
        if self.planner is not None and self.plan not in PLANNED:
            raise ValueError(f"the arm {self.name!r} has a `planner`, but its `plan` is {self.plan!r}.")
        if self.steps is not None and not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"the arm {self.name!r} has `steps` {self.steps!r}: give a whole number of at least 1.")
        if self.guidance is not None and self.guidance not in guiders.presets():
            raise ValueError(
                f"the arm {self.name!r} has the `guidance` {self.guidance!r}: choose one of {list(guiders.presets())}."
            )
        try:
            check_direction(self.direction, self.given_from)
            if self.lead is not None:
                lead_schedulers(self.lead)
            self.check_guiders()
        except ValueError as error:
            raise ValueError(f"the arm {self.name!r}: {error}") from error
        told = [f.name for f in fields(self) if f.name not in ("name", "models", "against", "steps", "codec_only")]
        told = [name for name in told if getattr(self, name) != getattr(type(self), name)]
        if self.codec_only and told:
            raise ValueError(f"the arm {self.name!r} is `codec_only`, which generates nothing: leave `{told[0]}` out.")

    def check_guiders(self, num_layers: int | None = None) -> None:
        """Checks the arm's own guiders, see [`guiders.check_guiders`].

        Raises:
            ValueError: as `check_guiders` and `build_guiders`.
        """
        none = {"guider": guiders.PlanGuidance(1.0), "audio_guider": guiders.PlanGuidance(1.0)}
        guiders.check_guiders(**{**none, **self.build_guiders()}, num_layers=num_layers)

    def build_guiders(self) -> dict[str, AnchorGuidance]:
        """The arm's own guiders, by name: `guider`, `audio_guider`, both or none.

        Raises:
            ValueError: if there is no such class, or it does not take these arguments.
        """
        built = {} if self.guidance is None else guiders.presets()[self.guidance]
        known = [key for key in guiders.__all__ if key.endswith("Guidance") and key != "AnchorGuidance"]
        for field in ("guider", "audio_guider"):
            settings = dict(getattr(self, field) or {})
            name = settings.pop("class", None)
            if not settings and name is None:
                continue
            if name is None and field not in built:
                raise ValueError(f"`{field}` changes a scheme, but there is no `guidance`: name one, or a `class`.")
            if name is not None and name not in known:
                raise ValueError(f"`{field}` is of class {name!r}: choose one of {known}.")
            kind = type(built[field]) if name is None else getattr(guiders, name)
            accepted = list(inspect.signature(kind).parameters)
            if unknown := [key for key in settings if key not in accepted]:
                raise ValueError(f"`{field}` has {unknown[0]!r}, but {kind.__name__} takes {', '.join(accepted)}.")
            built[field] = built[field].new(**settings) if name is None else kind(**settings)
        return built


def load_arms(path: str | Path) -> list[Arm]:
    """
    Reads arms from a TOML file: a table `[[arm]]` for each, and a table `[defaults]` for settings that an arm leaves out.

    Folders are relative to the working directory. Their configurations are checked here; a checkpoint of the Hub is checked when
    it is loaded.

    Raises:
        ValueError: if the file is not TOML, a key is unknown or missing, two arms have one name, `against` names an arm that does
            not come before, or a folder is missing or lacks what its arm needs: the components of its plan, a planner that knows
            timestamps, the blocks that its guiders skip.
    """
    try:
        content = tomllib.loads(read_text(path, _MAX_FILE_BYTES))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    tables, defaults = content.get("arm"), content.get("defaults", {})
    if not isinstance(tables, list) or not tables or set(content) - {"arm", "defaults"}:
        raise ValueError(
            f"{path} must hold tables [[arm]], perhaps [defaults], and nothing else, but it has "
            f"{', '.join(content) or 'none'}."
        )
    known = [field.name for field in fields(Arm)]
    arms: list[Arm] = []
    for table in [{**defaults, **table} for table in tables]:
        if unknown := [key for key in table if key not in known]:
            raise ValueError(f"{path}: unknown key `{unknown[0]}` in an arm; it knows {', '.join(known)}.")
        for key in ("name", "models"):
            if key not in table:
                raise ValueError(f"{path}: arm {len(arms) + 1} lacks `{key}`.")
        for key in ("models", "transformer", "against"):
            value = table.get(key, ())
            table[key] = (value,) if isinstance(value, str) else tuple(value)
        arm = Arm(**table)
        if arm.name in [other.name for other in arms]:
            raise ValueError(f"{path}: two arms are called {arm.name!r}.")
        for name in arm.against:
            if name not in [other.name for other in arms]:
                raise ValueError(f"{path}: {arm.name!r} stands `against` {name!r}, which is no arm before it.")
        arms.append(arm)
    for arm in arms:
        try:
            _check_folders(arm)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return arms


def _check_folders(arm: Arm) -> None:
    """Refuses an arm whose folders lack what it needs."""
    folders = [Path(model) for model in arm.models if Path(model).is_dir()]
    for model in arm.models:
        if Path(model) not in folders and model.count("/") != 1:
            raise ValueError(f"the model {model!r} of arm {arm.name!r} is neither a folder nor a Hub id.")
    for folder in folders:
        index = _read(arm, folder / "model_index.json")
        given = () if arm.planner is None else ("planner",)
        for part in () if arm.codec_only else PARTS_OF_PLANS[arm.plan]:
            if part not in given and index.get(part, [None])[0] is None:
                or_planner = ", or `planner` to the export of one" if part == "planner" else ""
                raise ValueError(
                    f'the arm {arm.name!r} has the `plan` "{arm.plan}", but {folder} has no {part}: set `plan = "none"`'
                    f"{or_planner}."
                )
    if arm.student is not None:
        find_student(arm.student)
    for exported in arm.transformer:
        _read(arm, Path(exported, "text_encoder", "config.json"))
    for folder in [Path(exported) for exported in arm.transformer] or folders:
        num_layers = _read(arm, folder / "transformer" / "config.json").get("num_layers")
        try:
            arm.check_guiders(num_layers)
        except ValueError as error:
            raise ValueError(
                f"the arm {arm.name!r} with the transformer of {folder}: {error} In an arm that is "
                "`guider = {skip_layers = []}`, and so for `audio_guider`."
            ) from error
    if arm.plan not in PLANNED or arm.codec_only:
        return
    for planner in [Path(arm.planner)] if arm.planner is not None else [folder / "planner" for folder in folders]:
        config = _read(arm, planner / "config.json")
        if arm.cues != "written" and config.get("first_timestamp_id") is None:
            raise ValueError(
                f"the arm {arm.name!r} has the `cues` {arm.cues!r}, but the planner in {planner} knows no timestamps: leave "
                "`cues` out."
            )


def _read(arm: Arm, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} of arm {arm.name!r} has no {path.name}: give the folder of a checkpoint or an export."
        )
    return json.loads(path.read_text())


# Scores that are kept


class ScoreFile(KeptScores):
    """
    Scores of clips in a file of JSON lines, one for each clip, see [`KeptScores`].

    The key of a score holds all that determines its clip: the contents of the components, how they are used, the scene with its
    seed, and the prompt. So a retrained checkpoint is measured anew, and an interrupted evaluation goes on. The key does not hold
    the code: if a change of the code changes clips or scores, delete the file.
    """

    columns = ("settings", "scene", "seed", "prompt")

    def read(self, row: dict[str, Any]) -> ClipScore:
        """The score of a row."""
        return score_from(row)

    def get(self, settings: str, example: Example) -> ClipScore | None:
        """The score of a scene under these settings, or `None`."""
        return self.find(self._key(settings, example))

    def add(self, settings: str, arm: str, example: Example, score: ClipScore) -> None:
        """Keeps a score. `arm` is for those who read the file."""
        self.keep(self._key(settings, example), score, {"arm": arm} | row_of(score))

    @staticmethod
    def _key(settings: str, example: Example) -> tuple:
        return settings, example.scene.digest, example.seed, example.prompt


def row_of(score: ClipScore) -> dict[str, Any]:
    """A score without what was found in the clip."""
    facts = [[fact.aspect, fact.subject, bool(fact.holds)] for fact in score.facts]
    texts = {"references": score.references, "hypotheses": score.hypotheses}
    return {"tier": score.tier, "desync": score.desync, "facts": facts, **texts}


def score_from(row: dict[str, Any]) -> ClipScore:
    """The score of [`row_of`]."""
    facts = tuple(Fact(*fact) for fact in row["facts"])
    values = {name: row[name] for name in ("tier", "desync", "references", "hypotheses")}
    return ClipScore(facts=facts, cast=(), sights=(), sounds=(), **values)


def settings_of(
    arm: Arm,
    model: str,
    transformer: str | None,
    num_inference_steps: int | None,
    examples: Sequence[Example] = (),
) -> str:
    """A key of everything that determines the clips of one checkpoint of an arm, except their scenes: the checkpoint's files,
    the settings of the arm, and, if prompts are shuffled, all `examples`."""
    folder = Path(model if Path(model).is_dir() else DiffusionPipeline.download(model))
    index = json.loads((folder / "model_index.json").read_text())
    parts = {name: folder / name for name, value in index.items() if isinstance(value, list) and value[0]}
    parts |= {name: str(value) for name, value in index.items() if not isinstance(value, list) and name[0] != "_"}
    if transformer is not None:
        parts |= {name: Path(transformer, name) for name in ("transformer", "text_encoder")}
    if arm.planner is not None:
        parts["planner"] = Path(arm.planner)
    unread = {name for names in PARTS_OF_PLANS.values() for name in names} - {*PARTS_OF_PLANS[arm.plan]}
    replaced = arm.build_guiders()
    for name in (*unread, *replaced):
        parts.pop(name, None)
    contents = {name: _digest(part) if isinstance(part, Path) else part for name, part in parts.items()}
    replaced = {name: [type(guider).__name__, dict(guider.config)] for name, guider in replaced.items()}
    use = {"direction": arm.direction, "plan": arm.plan, "cues": arm.cues, "text": arm.text, "lead": arm.lead}
    if arm.shuffle_prompts:  # the prompt of a clip then depends on all scenes
        use["shuffle_prompts"] = [(example.scene.digest, example.seed) for example in examples]
    if arm.codec_only:
        use["codec_only"] = True
    if arm.given_from != "render":
        use["given_from"] = arm.given_from
    if arm.student is not None:
        use["student"] = _digest(Path(arm.student)) if Path(arm.student).is_dir() else arm.student
    if arm.plan_rope != "full":
        use["plan_rope"] = arm.plan_rope
    settings = [contents, replaced, use, num_inference_steps, ASPECTS]  # scores of an older scorer do not count
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _digest(folder: Path) -> str:
    """A hash of the names and contents of a component's files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def run_arm(
    arm: Arm,
    load_pipeline: Callable[[str], BatonPipeline],
    examples: Sequence[Example],
    num_inference_steps: int | None = None,
    batch_size: int = 8,
    kept: ScoreFile | None = None,
) -> list[ClipScore]:
    """
    The scores of one arm: those of its first checkpoint on all examples, then those of the next.

    Args:
        arm: The arm.
        load_pipeline: Gives the pipeline of a folder or Hub id.
        examples: From [`draw_examples`]. All arms get the same ones; each example's seed draws its noise.
        num_inference_steps: Denoising steps, if the arm sets none; by default the pipeline's.
        batch_size: Clips made together.
        kept: Earlier scores. They are not measured again; new scores are added batch by batch.
    """
    kept = ScoreFile() if kept is None else kept
    steps = num_inference_steps if arm.steps is None else arm.steps
    scores: list[ClipScore] = []
    for model, transformer in [(model, part) for model in arm.models for part in arm.transformer or (None,)]:
        settings = settings_of(arm, model, transformer, steps, examples)
        missing = [example for example in examples if kept.get(settings, example) is None]
        if missing:
            pipe = _pipeline(arm, load_pipeline(model), transformer)
            if arm.codec_only:
                make_clips = reconstructed_clips(pipe)
            else:
                make_clips = generated_clips(
                    pipe,
                    examples,
                    steps,
                    arm.plan,
                    arm.shuffle_prompts,
                    arm.text,
                    arm.direction,
                    arm.cues,
                    arm.given_from,
                )
            done = 0
            for batch in scored_batches(make_clips, missing, batch_size):
                for example, score in zip(missing[done:], batch, strict=False):
                    kept.add(settings, arm.name, example, score)
                done += len(batch)
        scores += [kept.get(settings, example) for example in examples]
    return scores


def _pipeline(arm: Arm, pipe: BatonPipeline, transformer: str | None) -> BatonPipeline:
    """The checkpoint's pipeline with the arm's own parts."""
    parts: dict[str, Any] = {}
    if transformer is not None:
        parts["transformer"] = load_component(Path(transformer, "transformer"), DualBranchTransformer)
        parts["text_encoder"] = load_component(
            Path(transformer, "text_encoder"), UMT5EncoderModel, dtype=torch.float32
        )
    if arm.planner is not None:
        parts["planner"] = load_planner(arm.planner)
    pipe.register_modules(**{name: part.to(pipe.device).eval() for name, part in parts.items()}, **arm.build_guiders())
    set_plan_rope(pipe.transformer, arm.plan_rope)
    if arm.plan == "sheet as text":
        pipe.register_to_config(max_sequence_length=pipe.config.max_sequence_length + SHEET_LENGTH)
    if arm.lead is not None:
        shifts = [
            s.config.get("shift", s.config.get("flow_shift", 1.0)) for s in (pipe.scheduler, pipe.audio_scheduler)
        ]
        pipe.register_modules(**lead_schedulers(arm.lead, *shifts))
    if arm.student is not None:
        pipe.load_student(arm.student)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Comparison


def paired_differences(
    scores: Sequence[ClipScore], others: Sequence[ClipScore], num_scenes: int, direction: str = "t2av"
) -> dict[str, dict[str, Estimate | None]]:
    """
    By how much `scores` exceed `others` in each figure, on the same scenes.

    Every bootstrap draw takes the same scenes for both, so a hard scene does not count as a difference between the arms.

    Args:
        scores: Scores of the scenes in order, once for each checkpoint.
        others: Scores of the same scenes to compare with, likewise.
        num_scenes: Number of scenes.
        direction: How the clips were made, for `p_acc_made`.

    Returns:
        For "p_acc", "p_acc_made", "m_wer" and "desync" (seconds): the `difference`, and the `relative` difference as a share of the
        others' figure, each as `{"value", "low", "high"}` with the bounds of a 95% bootstrap interval over scenes. `None` if nobody
        is to speak, or the others' figure is 0.
    """
    scenes = list(range(num_scenes)) * (len(scores) // num_scenes)
    other_scenes = list(range(num_scenes)) * (len(others) // num_scenes)
    own, other = figure_parts(scores, direction), figure_parts(others, direction)
    differences: dict[str, dict[str, Estimate | None]] = {}
    for name in FIGURES:
        # One row for each clip of either arm; the other arm's columns are zero.
        parts = [np.concatenate([part, np.zeros(len(others))]) for part in own[name]]
        parts += [np.concatenate([np.zeros(len(scores)), part]) for part in other[name]]
        difference, relative = (
            bootstrap(statistic, parts, [*scenes, *other_scenes]) for statistic in (_difference, _relative_difference)
        )
        differences[name] = {"difference": difference, "relative": relative}
    return differences


def _difference(own: np.ndarray, own_number: np.ndarray, other: np.ndarray, other_number: np.ndarray) -> np.ndarray:
    return ratio(own, own_number) - ratio(other, other_number)


def _relative_difference(
    own: np.ndarray, own_number: np.ndarray, other: np.ndarray, other_number: np.ndarray
) -> np.ndarray:
    return ratio(ratio(own, own_number), ratio(other, other_number)) - 1


def summarise_arms(
    arms: Sequence[Arm], scores: dict[str, list[ClipScore]], examples: Sequence[Example]
) -> dict[str, dict[str, dict[str, Any]]]:
    """
    The figures of arms, and how they differ.

    Args:
        arms: All arms.
        scores: Scores by the name of their arm. The last arms may be missing.
        examples: The scenes.

    Returns:
        For each tier, "all" included, and each arm: the figures of [`summarise`], with intervals over scenes, not over the clips of
        several checkpoints; and under `against` the [`paired_differences`] from each arm that it is compared with, by name. The
        first arm of a direction has none.
    """
    arms = [arm for arm in arms if arm.name in scores]
    summaries = {
        arm.name: summarise(
            scores[arm.name], arm.direction, list(range(len(examples))) * (len(scores[arm.name]) // len(examples))
        )
        for arm in arms
    }
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for tier in ("all", *TIERS):
        num_scenes = sum(tier in ("all", example.scene.tier) for example in examples)
        if num_scenes == 0:
            continue
        of_tier = {name: [s for s in values if tier in ("all", s.tier)] for name, values in scores.items()}
        table[tier] = {}
        for arm in arms:
            others = arm.against or [next(other.name for other in arms if other.direction == arm.direction)]
            against = {
                other: paired_differences(of_tier[arm.name], of_tier[other], num_scenes, arm.direction)
                for other in others
                if other != arm.name
            }
            shared = {"direction": arm.direction} | summaries[arm.name][tier]
            table[tier][arm.name] = shared | {"against": against}
    return table


def format_arms(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The result of [`summarise_arms`] as two Markdown tables, with 95% intervals in brackets: the figures, and their differences from
    the arm of comparison, also as a percentage of its figure. *made* is P-Acc over the facts that are not given."""
    rows = [(tier, name, values) for tier, arms in table.items() for name, values in arms.items()]
    figures = dict(FIGURES)
    if not any(values["direction"] in GIVEN_ASPECTS for _, _, values in rows):
        del figures["p_acc_made"]
    lines = [["tier", "arm", "clips", *figures.values()]]
    for tier, name, values in rows:
        lines.append([tier, name, str(values["clips"]), *(format_estimate(values[key]) for key in figures)])
    tables = [markdown_table(lines)]
    compared = [(tier, name, *other) for tier, name, values in rows for other in values["against"].items()]
    if compared:
        lines = [["tier", "arm", "against", *figures.values()]]
        for tier, name, other, differences in compared:
            lines.append([tier, name, other, *(_format_difference(**differences[key]) for key in figures)])
        tables.append(markdown_table(lines))
    return "\n\n".join(tables)


def _format_difference(difference: Estimate | None, relative: Estimate | None) -> str:
    percent = "" if relative is None else f" ({format_estimate(relative, '+.0%')})"
    return format_estimate(difference, "+.3f") + percent
