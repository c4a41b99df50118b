"""Tiny real components: a pipeline small enough for a call of two steps to take a fraction of a second on one core.

Every factory is deterministic. Weights that a fresh model sets to zero are made random, so that nothing is left unread.
"""

import copy
import functools

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, MMAudioVAE, MMAudioVocoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from baton_diffusers.coordinates import num_samples, plan_layout
from baton_diffusers.models.plan_checker import PlanChecker
from baton_diffusers.models.semantic_encoders import AudioSemanticEncoder, VideoSemanticEncoder
from baton_diffusers.models.transformer_dual_branch import DualBranchTransformer
from baton_diffusers.models.va_planner import VAPlannerModel, add_timestamps
from baton_diffusers.models.vocoder_griffin_lim import GriffinLimVocoder
from baton_diffusers.pipelines.pipeline_baton import BatonPipeline
from baton_diffusers.plan import SemanticPlan


# One clip of the tiny pipeline: 3 x 4 x 4 video latents in 2 x 2 tokens a frame, 36 audio latents.
FRAME_RATE, NUM_FRAMES, SIZE = 8.0, 9, 32
DURATION = NUM_FRAMES / FRAME_RATE
SAMPLING_RATE, N_FFT, HOP_LENGTH, MEL_BINS = 4000, 256, 64, 16
LATENT_CHANNELS, AUDIO_CHANNELS, TEXT_DIM = 4, 6, 16
LATENTS, AUDIO_LATENTS = (LATENT_CHANNELS, 3, 4, 4), (36, AUDIO_CHANNELS)

VIDEO_PLAN_DIM, AUDIO_PLAN_DIM = 6, 4
KEYFRAME_RATE, VIDEO_GRID, TOKENS_PER_CHUNK = 6.0, (2, 2), 8

WORDS = (
    "a the red blue green circle square star moves jumps left right up down and says one two three while it".split()
)


def seeded(make, *args, **kwargs):
    """`make(...)` with its random weights drawn from seed 0, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(*args, **kwargs)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


# A transformer with context tokens, and with windows within the tiny clip.
FULL = {"num_context_tokens": 4, "cross_modal_window": 1, "audio_cross_modal_window": 1}


def tiny_transformer(**config) -> DualBranchTransformer:
    defaults = {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "audio_in_channels": AUDIO_CHANNELS,
        "audio_out_channels": AUDIO_CHANNELS,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "audio_ffn_dim": 32,
        "audio_patch_hidden_dim": 32,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "frame_rate": FRAME_RATE,
        "audio_latent_rate": SAMPLING_RATE / (2 * HOP_LENGTH),
        "video_plan_dim": VIDEO_PLAN_DIM,
        "audio_plan_dim": AUDIO_PLAN_DIM,
    }
    return seeded(DualBranchTransformer, **{**defaults, **config})


def tiny_vae() -> AutoencoderKLWan:
    """Stride 8 in space and 4 in time, as nano's."""
    return seeded(
        AutoencoderKLWan,
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.0, 1.5, 2.0],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
    )


def tiny_audio_vae() -> MMAudioVAE:
    vae = seeded(
        MMAudioVAE,
        mel_bins=MEL_BINS,
        latent_channels=AUDIO_CHANNELS,
        hidden_channels=8,
        channel_multipliers=(1, 1),
        layers_per_block=1,
        sample_rate=SAMPLING_RATE,
        n_fft=N_FFT,
        hop_length=HOP_LENGTH,
    )
    vae.vae.data_mean -= 4.0  # a log-mel spectrogram that is neither silent nor overdriven
    return vae


def tiny_vocoder() -> GriffinLimVocoder:
    return GriffinLimVocoder(SAMPLING_RATE, N_FFT, HOP_LENGTH, MEL_BINS, num_iterations=4, num_inversion_steps=4)


def tiny_trained_vocoder() -> MMAudioVocoder:
    return seeded(
        MMAudioVocoder,
        num_mels=MEL_BINS,
        upsample_initial_channel=16,
        upsample_rates=(8, 8),
        upsample_kernel_sizes=(16, 16),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def tiny_text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=3 + len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return seeded(UMT5EncoderModel, config)


def tiny_language_model(**config) -> dict:
    """Configuration of a planner's language model."""
    return {
        "vocab_size": 3 + len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 256,
        **config,
    }


def tiny_planner(**config) -> VAPlannerModel:
    defaults = {
        "language_model_config": tiny_language_model(),
        "video_dim": VIDEO_PLAN_DIM,
        "audio_dim": AUDIO_PLAN_DIM,
        "keyframe_rate": KEYFRAME_RATE,
        "video_grid": VIDEO_GRID,
        "audio_tokens_per_chunk": TOKENS_PER_CHUNK,
        "tower_depth": 1,
        "tower_num_attention_heads": 2,
        "system_prompt": None,
    }
    return seeded(VAPlannerModel, **{**defaults, **config})


def tiny_plan_checker() -> PlanChecker:
    """A checker of plans of two actors and one place."""
    kinds = {"circle": ["jumps"], "star": ["jumps"]}
    return seeded(PlanChecker, TEXT_DIM, ["red circle", "green star"], ["left"], kinds, num_attention_heads=2)


def tiny_cue_parts(tied: bool = False) -> dict[str, VAPlannerModel | PreTrainedTokenizerFast]:
    """A planner that writes cues, and its tokenizer, as parts of a pipeline. The head may be `tied` to the embeddings."""
    tokenizer = tiny_tokenizer()
    first = add_timestamps(tokenizer, 20, FRAME_RATE)
    language_model = tiny_language_model(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=tied
    )
    planner = tiny_planner(
        language_model_config=language_model, first_timestamp_id=first, num_timestamps=20, timestamp_rate=FRAME_RATE
    )
    head = planner.language_model.embed_tokens if tied else planner.lm_head
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return {"planner": planner, "planner_tokenizer": tokenizer}


def tiny_video_semantic_encoder() -> VideoSemanticEncoder:
    vision_config = {
        "hidden_size": VIDEO_PLAN_DIM,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    return seeded(VideoSemanticEncoder, vision_config, video_grid=VIDEO_GRID, keyframe_rate=KEYFRAME_RATE)


@functools.cache
def _audio_semantic_encoder() -> AudioSemanticEncoder:
    audio_config = {
        "sampling_rate": SAMPLING_RATE,
        "hidden_size": AUDIO_PLAN_DIM,
        "num_filters": 2,
        "upsampling_ratios": [5, 5, 5],
        "num_lstm_layers": 1,
        "codebook_size": 4,
        "codebook_dim": AUDIO_PLAN_DIM,
    }
    return seeded(AudioSemanticEncoder, audio_config, tokens_per_chunk=TOKENS_PER_CHUNK)


def tiny_audio_semantic_encoder() -> AudioSemanticEncoder:
    return copy.deepcopy(_audio_semantic_encoder())  # a tenth of the time of making it


def tiny_pipeline(**overrides) -> BatonPipeline:
    """A whole pipeline; `overrides` replace components and defaults of calls."""
    components = {
        "transformer": tiny_transformer,
        "vae": tiny_vae,
        "audio_vae": tiny_audio_vae,
        "vocoder": tiny_vocoder,
        "scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        "audio_scheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
        "text_encoder": tiny_text_encoder,
        "tokenizer": tiny_tokenizer,
        "planner": tiny_planner,
        "planner_tokenizer": tiny_tokenizer,
        "video_semantic_encoder": tiny_video_semantic_encoder,
        "audio_semantic_encoder": tiny_audio_semantic_encoder,
    }
    parts = {name: overrides.pop(name) if name in overrides else make() for name, make in components.items()}
    defaults = {
        "height": SIZE,
        "width": SIZE,
        "num_frames": NUM_FRAMES,
        "num_inference_steps": 2,
        "max_sequence_length": 16,
    }
    pipe = BatonPipeline(**parts, **{**defaults, **overrides})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_plan(batch_size: int = 1, duration: float = DURATION, seed: int = 0) -> SemanticPlan:
    """A plan in the layout of `tiny_planner`, masked tail included."""
    generator = torch.Generator().manual_seed(seed)
    layout = plan_layout(duration, KEYFRAME_RATE, VIDEO_GRID, TOKENS_PER_CHUNK)
    video_tokens = torch.randn(batch_size, len(layout.video_times), VIDEO_PLAN_DIM, generator=generator)
    audio_tokens = torch.randn(batch_size, len(layout.audio_times), AUDIO_PLAN_DIM, generator=generator)
    return SemanticPlan.laid_out(layout, video_tokens, audio_tokens, duration)


def random_clip(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames, uint8 `(num_frames, height, width, 3)`, and a waveform `(num_samples,)`."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (NUM_FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    waveform = rng.uniform(-0.5, 0.5, num_samples(DURATION, SAMPLING_RATE)).astype(np.float32)
    return frames, waveform
