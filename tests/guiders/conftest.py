import pytest
import torch
from diffusers import DiffusionPipeline

from baton_diffusers.guiders import (
    JOINT,
    NO_CROSS_MODAL,
    NO_PLAN,
    NO_TEXT,
    NOTHING,
    UNCONDITIONAL,
    combine,
    guidance_passes,
    presets,
)
from tests.tiny import AUDIO_LATENTS, LATENTS, TEXT_DIM, random_plan, tiny_transformer


@pytest.fixture
def predict():
    """Random predictions of one modality, by anchor, alike for equal seeds."""

    def predict(shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        joint = torch.randn(shape, generator=generator)
        anchors = (UNCONDITIONAL, NO_TEXT, NO_PLAN, NO_CROSS_MODAL, NOTHING)
        return {JOINT: joint} | {a: 0.8 * joint + torch.randn(shape, generator=generator) for a in anchors}

    return predict


class GuidedPipeline(DiffusionPipeline):
    """As much of a pipeline as guiders need to be saved and loaded with one."""

    def __init__(self, guider, audio_guider, scheduler):
        super().__init__()
        self.register_modules(guider=guider, audio_guider=audio_guider, scheduler=scheduler)


class Step:
    """One step of a clip under a tiny transformer: two clips, their conditions, and what takes their place in an anchor."""

    def __init__(self, num_context_tokens: int):
        self.transformer = tiny_transformer(num_context_tokens=num_context_tokens)
        generator = torch.Generator().manual_seed(3)

        def noise(*shape):
            return torch.randn(shape, generator=generator)

        self.latents, self.audio_latents = noise(2, *LATENTS), noise(2, *AUDIO_LATENTS)
        self.still, self.silence = noise(2, *LATENTS), noise(2, *AUDIO_LATENTS)
        self.prompt, self.negative_prompt = noise(2, 5, TEXT_DIM), noise(2, 5, TEXT_DIM)
        self.plan = random_plan(2)
        self.timestep, self.audio_timestep = torch.tensor([700.0, 400.0]), torch.tensor([600.0, 300.0])
        self.clean = torch.zeros(2)
        self.num_calls = 0

    @torch.no_grad()
    def __call__(self, **replaced):
        """The velocities of a forward with every condition, but for those that are replaced."""
        self.num_calls += 1
        inputs = {
            "hidden_states": self.latents,
            "audio_hidden_states": self.audio_latents,
            "timestep": self.timestep,
            "audio_timestep": self.audio_timestep,
            "encoder_hidden_states": self.prompt,
            "plan": self.plan,
        }
        return self.transformer(**{**inputs, **replaced}, return_dict=False)

    def run(self, guidance_pass, **replaced):
        """The velocities of a pass of guidance, with further inputs replaced."""
        anchor = guidance_pass.anchor
        replaced |= {
            "video_reads_audio": guidance_pass.video_reads_audio,
            "audio_reads_video": guidance_pass.audio_reads_video,
        }
        if not anchor.text:
            replaced["encoder_hidden_states"] = self.negative_prompt
        if not anchor.plan:
            replaced["plan"] = None
        if anchor.mute:
            replaced |= {"audio_hidden_states": self.silence, "audio_timestep": self.clean}
        if anchor.skip_layers:
            replaced["skip_layers"] = anchor.skip_layers
        if anchor.static:
            replaced |= {"hidden_states": self.still, "timestep": self.clean}
        return self(**replaced)

    def guide(self, guider, audio_guider):
        """The guided velocities of this step, as a pipeline's loop makes them."""
        guider.set_state(step=0, num_inference_steps=1, timestep=None)
        audio_guider.set_state(step=0, num_inference_steps=1, timestep=None)
        predictions, audio_predictions = {}, {}
        for guidance_pass in guidance_passes(guider, audio_guider):
            velocity, audio_velocity = self.run(guidance_pass)
            if guidance_pass.predicts_video:
                predictions[guidance_pass.anchor] = velocity
            if guidance_pass.predicts_audio:
                audio_predictions[guidance_pass.anchor] = audio_velocity
        return combine(guider, predictions), combine(audio_guider, audio_predictions)


def preset(name):
    """A preset for the three blocks of a tiny transformer: Ovi's leaves out one that it has."""
    pair = presets()[name]
    return {role: guider.new(skip_layers=(1,)) if guider.skip_layers else guider for role, guider in pair.items()}


@pytest.fixture(scope="session", params=[0, 2], ids=["without context tokens", "with context tokens"])
def step(request):
    """A step of a tiny clip, its transformer without and with context tokens."""
    return Step(request.param)
