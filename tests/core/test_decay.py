"""The law by which parts attract each other where a host does not see one from the other."""

import numpy as np
import pytest

pytest.importorskip("ase", reason="ASE is not installed in this environment")

import ase.io
from ase import Atoms
from scipy.spatial.transform import Rotation

from sog_longrange.ase_support import Decay, choose_preset, formal_charges, measure_decay
from sog_longrange.ase_support.presets import main
from sog_longrange.presets import PRESETS

CUTOFF, EDGE = 4.5, 45.0
STRENGTHS = np.array([1.2, 0.8, 1.0, 0.9])


def pair(rng, exponent, sign=1.0, handed=1.0, alike=False, kappa=0.0):
    """Two triangles of unlike atoms in a box, 5 to 10 Å apart, and their forces."""
    shape = np.array([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0], [-0.6, 1.8, 0.0]])
    one, other = (Rotation.random(rng=rng).apply(shape - shape.mean(0)) for _ in range(2))
    direction = rng.normal(size=3)
    other = other + direction / np.linalg.norm(direction) * rng.uniform(8.5, 13.0)
    places = np.vstack([one, other])
    strengths = np.ones(6) if alike else STRENGTHS[[0, 1, 2, 3, 0, 1]]
    vectors = places[None, 3:] - places[:3, None]
    pull = sign * exponent * np.outer(strengths[:3], strengths[3:])
    r = np.linalg.norm(vectors, axis=-1)
    pull = pull * (1.0 + kappa * r) * np.exp(-kappa * r)
    pull = (pull / r ** (exponent + 2.0))[..., None] * vectors
    atoms = Atoms("SNOFFO", places + rng.uniform(0, EDGE, 3), cell=[EDGE, EDGE, handed * EDGE])
    atoms.pbc = True
    return atoms, np.vstack([pull.sum(1), -pull.sum(0)])


def pairs(exponent, count=16, seed=0, **options):
    rng = np.random.default_rng(seed)
    return zip(*(pair(rng, exponent, **options) for _ in range(count)), strict=True)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 4.0, 6.0, 7.0])
def test_the_exponent_is_that_of_the_forces(exponent):
    exact = measure_decay(*pairs(exponent, alike=True), CUTOFF)
    assert exact[:2] == pytest.approx((exponent, 0.0), abs=1e-3)
    decay = measure_decay(*pairs(exponent), CUTOFF)
    assert abs(decay.exponent - exponent) <= 2.0 * decay.error < 0.3
    assert decay.pairs == 16
    assert decay.of_dispersion == (exponent if exponent > 3.5 else None)


@pytest.mark.parametrize("kappa", [0.2, 0.3])
def test_screened_charges_are_told_from_bare_ones_and_from_dispersion(kappa):
    frames, forces = pairs(1.0, kappa=kappa, alike=True)
    decay = measure_decay(frames, forces, CUTOFF)
    assert decay.of_screening == decay.kappa == kappa
    assert 1.6 < decay.exponent < 3.5
    assert decay.describe().endswith(f", or exp(-{kappa:g} r)/r")
    assert decay.of_dispersion is None
    unknown = formal_charges(frames)
    plain, choice = choose_preset(unknown), choose_preset(unknown, decay=decay)
    assert choice.preset.options == {**plain.preset.options, "kernel": f"yukawa(kappa={kappa:g})"}
    assert choice.preset.by_cutoff
    bare = measure_decay(*pairs(1.0), CUTOFF)
    assert bare.of_screening is None
    assert choose_preset(unknown, decay=bare) == plain
    assert measure_decay(*pairs(6.0, alike=True), CUTOFF).kappa is None


def test_images_order_handedness_and_open_boxes_do_not_matter():
    frames, forces = (list(own) for own in pairs(6.0, handed=-1.0))
    first = measure_decay(frames, forces, CUTOFF)
    order = np.random.default_rng(1).permutation(6)
    for frame in frames:
        frame.wrap()
    assert measure_decay(frames, forces, CUTOFF) == pytest.approx(first)
    shuffled = [frame[order] for frame in frames], [own[order] for own in forces]
    assert measure_decay(*shuffled, CUTOFF) == pytest.approx(first)
    frames, forces = pairs(6.0, handed=-1.0)
    assert measure_decay([Atoms(own.numbers, own.positions) for own in frames], forces, CUTOFF) == (
        pytest.approx(first)
    )


def test_images_are_those_nearest_in_a_skewed_cell():
    frames, forces = (list(own) for own in pairs(6.0))
    first = measure_decay(frames, forces, CUTOFF)
    for frame in frames:
        frame.cell = [[EDGE, 0, 0], [0.9 * EDGE, EDGE, 0], [0.8 * EDGE, -0.7 * EDGE, EDGE]]
        frame.wrap()
    assert measure_decay(frames, forces, CUTOFF) == pytest.approx(first)


def test_labels_may_have_noise_and_be_missing():
    rng = np.random.default_rng(3)
    frames, forces = (list(own) for own in pairs(6.0, count=40))
    noise = 0.2 * np.median([np.linalg.norm(own[:3].sum(0)) for own in forces]) / np.sqrt(6.0)
    forces = [own + noise * rng.normal(size=own.shape) for own in forces]
    noisy = measure_decay(frames, forces, CUTOFF)
    assert noisy.exponent == pytest.approx(6.0, abs=3.0 * noisy.error)
    assert 12 < noisy.pairs < 40
    more = [*frames, *frames[:2], Atoms("F")]
    assert measure_decay(more, [*forces, None, np.zeros((6, 3)), np.zeros((1, 3))], CUTOFF) == noisy


CHANGES = ("few", "repulsion", "none", "scatter", "one part", "three", "other", "box", "range")


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_told_where_there_is_no_law(change):
    frames, forces = (list(own) for own in pairs(6.0, sign=-1.0 if change == "repulsion" else 1.0))
    rng = np.random.default_rng(2)
    if change == "few":
        frames, forces = frames[:11], forces[:11]
    elif change == "none":
        forces = [np.zeros_like(own) for own in forces]
    elif change == "scatter":
        forces = [own * np.exp(rng.normal()) for own in forces]
    elif change == "one part":
        frames, forces = [frame[:3] for frame in frames], [own[:3] for own in forces]
    elif change == "three":
        frames = [frame + Atoms("F", [frame.positions[0] + 20.0]) for frame in frames]
        forces = [np.vstack([own, np.zeros(3)]) for own in forces]
    elif change == "other":  # salts, of which two parts say nothing
        frames, forces = (
            [*frames, Atoms("NaCl", [[0, 0, 0], [2.5, 0, 0]])],
            [*forces, np.ones((2, 3))],
        )
    elif change == "box":  # the next image is as near
        for frame in frames:
            frame.cell = [20.0, 20.0, 20.0]
    elif change == "range":
        frames, forces = frames[:1] * 16, forces[:1] * 16
    assert measure_decay(frames, forces, CUTOFF) is None


def test_a_scan_tells_no_law_as_multipoles_attract_when_turned_so():
    quadrupole = np.array([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0]]), np.array([-0.35, 0.7, -0.35])
    frames, forces = [], []
    for distance in np.linspace(7.5, 12.0, 20):
        shape, charges = quadrupole
        other = shape[:, [1, 0, 2]] + [distance, 0, 0]  # T-shaped
        vectors = other[None] - shape[:, None]
        pulls = -np.outer(charges, charges) / np.linalg.norm(vectors, axis=-1) ** 3
        pulls = pulls[..., None] * vectors
        frames.append(Atoms("ONOONO", np.vstack([shape, other])))
        forces.append(np.vstack([pulls.sum(1), -pulls.sum(0)]))
    assert (np.array(forces)[:, :3, 0].sum(1) > 0.0).all(), "attraction, as 1/r^6"
    assert measure_decay(frames, forces, 5.0) is None


def test_what_goes_on_without_an_end_has_no_centre():
    frames, forces = (list(own) for own in pairs(6.0))
    for frame in frames:
        frame.cell[2, 2] = 2.0  # each atom touches its own image
    assert measure_decay(frames, forces, CUTOFF) is None


def test_the_law_decides_where_charges_are_not_known():
    frames, forces = pairs(4.0)
    unknown, decay = formal_charges(frames), measure_decay(frames, forces, CUTOFF)
    assert unknown.charges is None
    assert choose_preset(unknown).name == "ionic"
    choice = choose_preset(unknown, decay=decay)
    assert choice.name == "dispersive"
    assert choice.preset.options == {"kernel": "dispersion(exponent=4)"}
    assert "16 pairs farther apart than 4.5 Å attract by a potential r^-(4.0" in choice.why
    assert choose_preset(unknown, "molecular", decay).preset == PRESETS["molecular"]
    assert choose_preset(unknown, "dispersive", decay) == choose_preset(unknown, "dispersive")
    unsure = decay._replace(error=0.3)
    assert choose_preset(unknown, decay=unsure) == choose_preset(unknown)
    slow = Decay(2.0, 0.1, 16, CUTOFF)
    assert choose_preset(unknown, decay=slow) == choose_preset(unknown)


def test_charges_that_are_known_win_over_the_law():
    neutral = formal_charges([Atoms("Ar2", [[0, 0, 0], [x, 0, 0]]) for x in (4.0, 6.0)])
    assert neutral.charges is not None
    assert choose_preset(neutral, decay=Decay(6.0, 0.1, 16, CUTOFF)) == choose_preset(neutral)


def test_the_command_tells_the_law(tmp_path, capsys):
    frames, forces = pairs(4.0)
    for frame, own in zip(frames, forces, strict=True):
        frame.arrays["any_forces"] = own
    path = str(tmp_path / "train.xyz")
    ase.io.write(path, frames, format="extxyz")
    main([path, "--cutoff=4.5", "--forces_key=any_forces"])
    told = capsys.readouterr().out
    assert "Forces: 16 pairs farther apart than 4.5 Å attract" in told
    assert "MACE:   '--sog_kernel=dispersion(exponent=4)'\n" in told, "for a shell"
    main([path, "--cutoff=4.5"])
    assert "Forces:" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="`forces_key` must be one of the arrays .*any_forces"):
        main([path, "--cutoff=4.5", "--forces_key=forces"])
    for frame in frames:
        frame.arrays["forces"] = frame.arrays.pop("any_forces")
    ase.io.write(path, frames, format="extxyz")
    main([path, "--cutoff=4.5"])
    assert "Forces: 16 pairs" in capsys.readouterr().out
    main([path])
    assert "Forces:" not in capsys.readouterr().out
