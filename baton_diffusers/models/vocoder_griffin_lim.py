"""A vocoder without weights: Griffin-Lim on the log-mel spectrograms that diffusers' `MMAudioVAE` decodes."""

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_mmaudio import mel_filterbank
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin


class GriffinLimVocoder(ModelMixin, ConfigMixin):
    r"""
    Turns a log-mel spectrogram into a waveform, in place of [`MMAudioVocoder`] and called like it.

    The mel filters are inverted by non-negative least squares; the phase is then found by the fast Griffin-Lim algorithm
    (Perraudin, Balazs and Søndergaard 2013, algorithm 2). Nothing is learned, and the phases start from a fixed seed: the
    same spectrogram gives the same waveform. The work is done in float32 whatever the model's dtype.

    Args:
        sampling_rate (`int`, defaults to `16000`): Samples per second. This and the next three values must equal those of the
            `MMAudioVAE` whose spectrograms are inverted (its `sample_rate`, `n_fft`, `hop_length` and `mel_bins`).
        n_fft (`int`, defaults to `1024`): Length of the analysis window in samples.
        hop_length (`int`, defaults to `256`): Samples from one mel frame to the next.
        mel_bins (`int`, defaults to `64`): Number of mel bins.
        num_iterations (`int`, defaults to `48`): Griffin-Lim iterations.
        momentum (`float`, defaults to `0.99`): The algorithm's alpha; 0 is the original Griffin-Lim algorithm.
        num_inversion_steps (`int`, defaults to `64`): Multiplicative updates of the non-negative least squares.
    """

    _keep_in_fp32_modules = ["window"]

    @register_to_config
    def __init__(
        self,
        sampling_rate: int = 16_000,
        n_fft: int = 1024,
        hop_length: int = 256,
        mel_bins: int = 64,
        num_iterations: int = 48,
        momentum: float = 0.99,
        num_inversion_steps: int = 64,
    ) -> None:
        super().__init__()
        if n_fft % hop_length != 0 or n_fft < 2 * hop_length:
            raise ValueError(
                f"`n_fft` ({n_fft}) must be a multiple of `hop_length` ({hop_length}), at least twice it."
            )
        if num_iterations < 1 or num_inversion_steps < 1:
            raise ValueError(
                "`num_iterations` and `num_inversion_steps` must be at least 1, got "
                f"{num_iterations} and {num_inversion_steps}."
            )
        # What is saved, and tells the model's device and dtype; the filters follow from the configuration.
        self.register_buffer("window", torch.hann_window(n_fft))
        mel_basis = mel_filterbank(sampling_rate, n_fft, mel_bins, 0.0, sampling_rate / 2)
        self.register_buffer("mel_basis", mel_basis, persistent=False)

    @torch.no_grad()
    def forward(self, mel: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        r"""
        Args:
            mel (`torch.Tensor` of shape `(batch_size, mel_bins, num_mel_frames)`):
                Natural logarithm of the mel magnitudes, as `MMAudioVAE.decode` returns it.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`~models.autoencoder_kl.DecoderOutput`] instead of a plain tuple.

        Returns:
            The waveform of shape `(batch_size, 1, num_mel_frames * hop_length)` in [-1, 1], in the dtype of `mel`.

        Raises:
            ValueError: If `mel` does not have `mel_bins` rows.
        """
        config = self.config
        if mel.ndim != 3 or mel.shape[1] != config.mel_bins:
            raise ValueError(f"`mel` must be (batch_size, {config.mel_bins}, num_mel_frames), got {tuple(mel.shape)}.")
        magnitude = self._invert_mel(mel.float())
        window = self.window.float()

        # Start from phases drawn with a fixed seed. Regular phases (all zero, or of steady tones) cancel exactly in
        # many places, where rounding then decides what is heard.
        turns = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(0)).to(mel.device)
        spectrum = torch.polar(magnitude, (2 * math.pi * turns).expand_as(magnitude))

        # t_n = c_n + alpha (c_n - c_{n-1}), c_n = P_C1(P_C2(t_{n-1})): P_C2 sets the magnitude, P_C1 makes it the
        # spectrum of a signal.
        previous = torch.zeros_like(spectrum)
        for _ in range(config.num_iterations):
            consistent = self._analyse(self._synthesise(spectrum, window), window)
            spectrum = consistent + config.momentum * (consistent - previous)
            spectrum = magnitude * spectrum / spectrum.abs().clamp(min=1e-12)
            previous = consistent
        padding = (config.n_fft - config.hop_length) // 2
        waveform = self._synthesise(spectrum, window)[:, padding:-padding]

        waveform = waveform.unsqueeze(1).clamp(-1, 1).to(mel.dtype)
        return DecoderOutput(sample=waveform) if return_dict else (waveform,)

    def _invert_mel(self, mel: torch.Tensor) -> torch.Tensor:
        # min |B s - m|^2 with s >= 0, by Lee and Seung's multiplicative updates.
        # Bins outside every mel filter stay at zero.
        basis = self.mel_basis.float()
        target = basis.T @ mel.exp()
        magnitude = target
        for _ in range(self.config.num_inversion_steps):
            magnitude = magnitude * target / (basis.T @ (basis @ magnitude)).clamp(min=1e-12)
        return magnitude

    def _analyse(self, signal: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        config = self.config
        return torch.stft(
            signal, config.n_fft, config.hop_length, window=window, center=False, onesided=True, return_complex=True
        )

    def _synthesise(self, spectrum: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
        # The signal whose spectrum is nearest: overlap-add, divided by the overlap of the squared windows.
        # `torch.istft` refuses a Hann window that is not centred, since it starts at zero.
        config = self.config
        frames = torch.fft.irfft(spectrum, n=config.n_fft, dim=1) * window[:, None]
        num_samples = config.n_fft + config.hop_length * (spectrum.shape[2] - 1)
        squares = window.square()[:, None].expand(-1, spectrum.shape[2])[None]
        signal, weight = (
            F.fold(x, (1, num_samples), (1, config.n_fft), stride=(1, config.hop_length))[:, 0, 0]
            for x in (frames, squares)
        )
        return signal / weight.clamp(min=1e-6)
