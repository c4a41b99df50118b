import torch
import torch.nn.functional as F

from baton_diffusers.training.precision import float32_attention


def attend(query, key, value):
    with torch.autocast("cpu", torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value)


def test_attention_stays_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 16, 8, generator=generator) for _ in range(3))
    exact = F.scaled_dot_product_attention(query, key, value)
    before = F.scaled_dot_product_attention
    assert attend(query, key, value).dtype == torch.bfloat16
    with float32_attention():
        assert torch.equal(attend(query, key, value), exact)
        low = attend(*(states.bfloat16() for states in (query, key, value)))
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, before(*(s.bfloat16().float() for s in (query, key, value))).bfloat16())
    assert F.scaled_dot_product_attention is before
    assert attend(query, key, value).dtype == torch.bfloat16
