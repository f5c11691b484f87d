"""02_encoder.py: Table 8 to the letter, features centred on their pixels, views encoded one by one."""
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

encoder = import_module("02_encoder")


def half(n):
    """What a stride of 2 leaves of n pixels: 0, 2, 4 ..."""
    return len(range(0, n, 2))


@pytest.mark.parametrize("V, H, W", [(2, 64, 96), (3, 37, 50), (1, 48, 33), (1, 63, 66), (2, 32, 65)])
def test_every_row_of_table_8_has_its_channels_and_resolution(V, H, W):
    h, w = [H], [W]
    for _ in range(4):
        h, w = h + [half(h[-1])], w + [half(w[-1])]
    # channels, halvings
    rows = {"L1": (16, 1), "L2": (32, 2), "L3": (64, 3), "L4": (64, 3), "L5": (128, 4), "L6": (128, 4),
            "L7": (128, 4), "L8": (128, 4), "L9": (128, 4), "L10": (128, 4), "L11": (64, 4), "L12": (64, 3),
            "L13": (128, 3), "L14": (64, 3), "L15": (32, 3), "L16": (32, 2), "L17": (64, 2), "L18": (32, 2),
            "L19": (32, 2)}
    expected = {row: (V, C, h[level], w[level]) for row, (C, level) in rows.items()}
    model = encoder.Encoder()
    images = torch.rand(V, 3, H, W)
    assert encoder.layer_shapes(model, images) == expected
    assert model(images).shape == (V, 32, -(-H // 4), -(-W // 4))


def test_the_listed_convolutions_hold_2026288_weights():
    # L1, L11, L14, L15, L18, L19
    conv = [(3, 16, 7), (128, 64, 3), (128, 64, 3), (64, 32, 3), (64, 32, 3), (32, 32, 1)]
    # L2 ... L10
    blocks = [(16, 32, 32), (32, 64, 64), (64, 64, 64), (64, 128, 128)] + [(128, 128, 128)] * 5
    by_hand = sum(a * b * k * k for a, b, k in conv) + sum(9 * (a * b + b * c) for a, b, c in blocks)
    model = encoder.Encoder()
    counts = encoder.parameter_counts(model)
    assert counts["listed"] == by_hand == 2_026_288
    assert counts["shortcut"] == 16 * 32 + 32 * 64 + 64 * 128
    # layers, blocks, shortcuts
    outputs = 16 + 2 * (32 + 64 + 64 + 6 * 128) + 64 + 64 + 32 + 32 + 32 + (32 + 64 + 128)
    assert counts["norm"] == 2 * outputs                                      # and no bias
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


def test_a_res_block_is_two_convolutions_around_a_shortcut():
    torch.manual_seed(0)
    for inputs, outputs, stride in ((4, 4, 1), (3, 5, 2)):
        block, x = encoder.ResBlock(inputs, outputs, stride), torch.randn(2, inputs, 9, 12)
        y = F.relu(F.instance_norm(F.conv2d(x, block.conv1[0].weight, stride=stride, padding=1)))
        y = F.instance_norm(F.conv2d(y, block.conv2[0].weight, padding=1))
        short = x if stride == 1 else F.instance_norm(F.conv2d(x, block.shortcut[0].weight, stride=stride))
        torch.testing.assert_close(block(x), F.relu(y + short))


@pytest.mark.parametrize("height, width", [(8, 7), (7, 8), (3, 2)])
def test_upsampled_pixel_i_reads_position_i_over_2(height, width):
    x = torch.rand(2, 3, half(height), half(width), dtype=torch.float64)
    up = encoder.upsample_onto(x, torch.zeros(2, 1, height, width))
    assert up.shape == (2, 3, height, width)
    for i in range(height):
        for j in range(width):
            above, left = i // 2, j // 2                                      # this row, or half-way on
            below = min((i + 1) // 2, x.shape[2] - 1)
            right = min((j + 1) // 2, x.shape[3] - 1)
            mean = sum(x[:, :, a, b] for a in (above, below) for b in (left, right)) / 4
            torch.testing.assert_close(up[:, :, i, j], mean)


def test_l13_and_l17_join_what_is_upsampled_with_l4_and_l2():
    torch.manual_seed(0)
    model, got, made = encoder.Encoder(), {}, {}

    def keep(module, x, y):
        got[name_of[module]], made[name_of[module]] = x[0], y
    name_of = {module: name for name, module in model.named_children()}
    for module in name_of:
        module.register_forward_hook(keep)
    images = torch.rand(2, 3, 37, 50)
    torch.testing.assert_close(model(images), made["L19"])
    torch.testing.assert_close(got["L1"], 2 * images - 1)
    torch.testing.assert_close(got["L2"], F.relu(made["L1"]))
    for row, below, skip in (("L14", "L11", "L4"), ("L18", "L15", "L2")):
        up = encoder.upsample_onto(F.elu(made[below]), made[skip])
        torch.testing.assert_close(got[row], torch.cat([up, made[skip]], dim=1))
    for row in range(3, 12):                                                  # a chain
        torch.testing.assert_close(got[f"L{row}"], made[f"L{row - 1}"])


def centroid_shift(row, column):
    """How far (in pixels, down and right) the receptive field of feature (row, column) is centred from pixel
    (4 row, 4 column). All weights positive and equal, no norm: what is left is geometry, and the gradient is
    the receptive field."""
    model = encoder.Encoder()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, nn.Sequential):
            module[1] = nn.Identity()
    images = torch.full((1, 3, 320, 304), 0.75, requires_grad=True)
    field, = torch.autograd.grad(model(images)[0, :, row, column].sum(), images)
    field = field[0].sum(0).double()
    rows, columns = torch.meshgrid(torch.arange(320.0), torch.arange(304.0), indexing="ij")
    return [float((field * x).sum() / field.sum() - 4 * i) for x, i in ((rows, row), (columns, column))]


# whole and in-between cells of L11, L15
@pytest.mark.parametrize("row, column", [(40, 38), (41, 37), (39, 40)])
def test_the_feature_at_a_pixel_has_its_receptive_field_centred_there(row, column):
    assert max(map(abs, centroid_shift(row, column))) < 0.2


def test_half_pixel_upsampling_would_shift_the_features(monkeypatch):
    monkeypatch.setattr(encoder, "upsample_onto", lambda x, skip: F.interpolate(
        x, size=skip.shape[-2:], mode="bilinear", align_corners=False))
    assert max(map(abs, centroid_shift(40, 38))) > 1


def test_a_view_is_encoded_independently_of_the_other_views():
    torch.manual_seed(0)
    model, images = encoder.Encoder(), torch.rand(3, 3, 40, 52)
    with torch.no_grad():
        together = model(images)
        assert together.std() > 0.1
        for v in range(3):
            torch.testing.assert_close(model(images[v:v + 1])[0], together[v], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation, expected", [
    ("none", []), ("elu", ["L11", "L14", "L15", "L18"])])
def test_an_elu_follows_l11_l14_l15_and_l18_and_none_follows_nothing(activation, expected):
    model, order = encoder.Encoder(activation), []
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, x, y, name=name: order.append(name))
    model(torch.rand(1, 3, 32, 32))
    before = [layer for layer, then in zip(order, order[1:]) if then == "activation"]
    assert before == (expected or ["L11", "L14", "L15", "L18"])
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(model.activation(x), torch.where(x > 0, x, x.exp() - 1) if expected else x)


def test_the_activation_is_elu_unless_told_otherwise_and_an_unknown_one_is_refused():
    assert isinstance(encoder.Encoder().activation, nn.ELU)
    with pytest.raises(KeyError):
        encoder.Encoder("tanh")


def test_every_weight_of_the_encoder_gets_a_gradient():
    torch.manual_seed(0)
    model = encoder.Encoder()
    model(torch.rand(2, 3, 48, 48)).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert dead == []
