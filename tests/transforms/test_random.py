import torch

from eqcohvit.transforms.random import philox, uniforms


def words(counter, key):
    return [hex(int(w)) for w in philox(tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key))]


def test_philox_known_answers():
    # Known-answer vectors of the Random123 distribution for philox4x32-10.
    assert words((0, 0, 0, 0), (0, 0)) == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    full = 0xFFFFFFFF
    assert words((full,) * 4, (full, full)) == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
    pi_digits = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi_digits, (0xA4093822, 0x299F31D0)) == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


def draw(seed=0, epoch=0, num_keys=20_000, stream=0, count=6):
    keys = torch.arange(num_keys)
    return uniforms(seed, keys=keys, epochs=torch.full_like(keys, epoch), stream=stream, count=count)


def test_uniforms_are_uniform_and_uncorrelated():
    u = draw()
    assert u.shape == (20_000, 6) and u.dtype == torch.float32
    assert u.min() >= 0 and u.max() < 1
    # Standard errors: mean 0.289 / sqrt(n) = 0.002, correlation 1 / sqrt(n) = 0.007; five of them are allowed.
    assert (u.mean(dim=0) - 0.5).abs().max() < 0.0102
    assert (u.var(dim=0) - 1 / 12).abs().max() < 0.003
    correlation = torch.corrcoef(u.T) - torch.eye(6)
    assert correlation.abs().max() < 0.036


def test_uniforms_depend_only_on_the_counters():
    base = draw(num_keys=50)
    for changed in (draw(seed=1, num_keys=50), draw(epoch=1, num_keys=50), draw(stream=1, num_keys=50)):
        assert (changed == base).float().mean() < 0.01
    picked = torch.tensor([41, 3, 7])
    again = uniforms(0, keys=picked, epochs=torch.zeros_like(picked), stream=0, count=6)
    assert torch.equal(again, base[picked])


def test_uniforms_differ_for_large_keys():
    keys = torch.tensor([5, 5 + (1 << 32), 5 + (1 << 40)])
    u = uniforms(0, keys=keys, epochs=torch.zeros_like(keys), stream=0, count=1)
    assert len(set(u.flatten().tolist())) == 3


def test_uniforms_of_several_streams_at_once_equal_those_of_each():
    keys = torch.tensor([4, 4, 9])
    epochs = torch.tensor([2, 2, 2])
    streams = torch.tensor([0, 5, 5])
    together = uniforms(7, keys=keys, epochs=epochs, stream=streams, count=6)
    for row, stream in enumerate(streams.tolist()):
        alone = uniforms(7, keys=keys[row : row + 1], epochs=epochs[:1], stream=stream, count=6)
        assert torch.equal(together[row : row + 1], alone)
