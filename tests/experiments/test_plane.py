"""The densities of the plane: they integrate to 1, their samples follow them, the share between the pieces is exact."""

import math

import pytest

torch = pytest.importorskip("torch")

from kexue.experiments import _plane  # noqa: E402


@pytest.mark.parametrize("name", ["crescents", "ring"])
def test_densities_are_those_of_their_samples(name):
    plane = _plane.make_planes()[name]
    axis = torch.linspace(-9, 16, 1500)
    points = torch.cartesian_prod(axis[axis.abs() < 6], axis)
    mass = plane.log_prob(points).double().exp() * (25 / 1499) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    between = float(mass[plane.between(points)].sum())
    assert between == pytest.approx(plane.share, rel=0.02)
    x = plane.draw(200_000, torch.Generator().manual_seed(0))
    deviation = math.sqrt(plane.share / len(x))
    assert float(plane.between(x).double().mean()) == pytest.approx(plane.share, abs=4 * deviation)
    assert float(x[:, 1].mean()) == pytest.approx(float(mass @ points[:, 1].double()), abs=0.03)
    entropy = -float((mass * plane.log_prob(points).clamp(min=-100)).sum())
    assert -float(plane.log_prob(x).mean()) == pytest.approx(entropy, abs=0.02)


def test_a_bad_fit_is_no_filament():
    planes = _plane.make_planes()
    fitted = {name: [_plane.fit_plane(plane, 4, 0)] for name, plane in planes.items()}
    figures = _plane.plane_figures(planes, fitted)
    assert figures["between_ring"].value > 2 * figures["between_ring_truth"].value
    assert [claim.verdict for claim in _plane.plane_claims(planes, fitted)] == ["not reproduced"] * 2
