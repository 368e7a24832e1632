"""Every malformed argument ends in a message that names it, what was wanted and what came."""

import re

import pytest
import torch
from references import DOUBLE, OPEN, PERIODIC, random_structure, sum_of_gaussians

from sog_longrange import (
    BoundaryError,
    ConfigError,
    Ewald,
    InputError,
    InputTypeError,
    LongRangeEnergy,
    SizeError,
    SOGConfig,
    SOGError,
    SOGLongRange,
    coulomb,
)
from sog_longrange.testing import join

NAN, INF = float("nan"), float("inf")
BATCH = torch.tensor([0, 0, 0, 1, 1, 1, 1])


def arguments():
    """Two valid periodic structures of 3 and 4 atoms."""
    structures = [random_structure(0, 3, 2), random_structure(1, 4, 2)]
    names = ("charges", "positions", "cell", "pbc", "batch", "num_graphs")
    return dict(zip(names, join(structures), strict=True))


def altered(name, change):
    """The valid arguments with one of them changed."""
    values = arguments()
    values[name] = change(values[name])
    return values


def put(value, *index):
    def change(tensor):
        tensor = tensor.clone()
        tensor[index] = value
        return tensor

    return change


def energy(values, kernel=None, **options):
    kernel = sum_of_gaussians(coulomb()) if kernel is None else kernel
    return LongRangeEnergy(kernel, tolerance=1e-2, backend="dense", **options)(**values)


def check_message(error, name, expected, got):
    """The form of `sog_longrange.errors.explain`, with the three parts matched as regexes."""
    pattern = rf"^`{name}` must be {expected}, got {got}\.( .+)?$"
    assert re.search(pattern, str(error)), f"{error!s} does not match {pattern}"


def test_the_valid_arguments_are_valid():
    assert bool(energy(arguments()).energy.isfinite().all())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "index"),
    [("charges", (2, 1)), ("positions", (6, 0)), ("cell", (1, 2, 0))],
)
def test_a_value_that_is_not_finite_is_located(name, index, value):
    with pytest.raises(InputError) as caught:
        energy(altered(name, put(value, *index)))
    check_message(caught.value, name, "finite", re.escape(f"{value} at index {index}"))


WRONG_SHAPES = [
    ("positions", lambda x: x[:, :2], r"of shape \(n_atoms, 3\)", r"shape \(7, 2\)"),
    ("positions", lambda x: x[0], r"of shape \(n_atoms, 3\)", r"shape \(3,\)"),
    ("positions", lambda x: x[None], r"of shape \(n_atoms, 3\)", r"shape \(1, 7, 3\)"),
    ("charges", lambda x: x[:, 0], r"of shape \(n_atoms=7, n_channels\)", r"shape \(7,\)"),
    ("charges", lambda x: x[:6], r"of shape \(n_atoms=7, n_channels\)", r"shape \(6, 2\)"),
    ("charges", lambda x: x[:, :0], "of at least one channel", "none"),
    ("cell", lambda x: x[0], r"of shape \(n_graphs=2, 3, 3\)", r"shape \(3, 3\)"),
    ("cell", lambda x: x[:1], r"of shape \(n_graphs=2, 3, 3\)", r"shape \(1, 3, 3\)"),
    ("cell", lambda x: x[..., :2], r"of shape \(n_graphs=2, 3, 3\)", r"shape \(2, 3, 2\)"),
    ("pbc", lambda x: x[:1], r"of shape \(n_graphs=2, 3\)", r"shape \(1, 3\)"),
    ("pbc", lambda x: x[:, 0], r"of shape \(n_graphs=2, 3\)", r"shape \(2,\)"),
    ("batch", lambda x: x[:6], r"of shape \(n_atoms=7,\)", r"shape \(6,\)"),
    ("batch", lambda x: x[:, None], r"of shape \(n_atoms=7,\)", r"shape \(7, 1\)"),
]


@pytest.mark.parametrize(("name", "change", "expected", "got"), WRONG_SHAPES)
def test_a_wrong_shape_is_named(name, change, expected, got):
    with pytest.raises(InputError) as caught:
        energy(altered(name, change))
    check_message(caught.value, name, expected, got)


WRONG_TYPES = [
    ("positions", torch.Tensor.long, "float32 or float64", "torch.int64"),
    ("positions", torch.Tensor.half, "float32 or float64", "torch.float16"),
    ("positions", torch.Tensor.bfloat16, "float32 or float64", "torch.bfloat16"),
    ("positions", torch.Tensor.tolist, "a torch.Tensor", "list"),
    ("positions", torch.Tensor.numpy, "a torch.Tensor", "ndarray"),
    ("positions", lambda _: None, "a torch.Tensor", "NoneType"),
    ("charges", torch.Tensor.int, "float32 or float64", "torch.int32"),
    ("charges", torch.Tensor.half, "float32 or float64", "torch.float16"),
    ("charges", torch.Tensor.cfloat, "float32 or float64", "torch.complex64"),
    (
        "charges",
        torch.Tensor.float,
        "torch.float64 on cpu like `positions`",
        "torch.float32 on cpu",
    ),
    ("charges", lambda _: 1.0, "a torch.Tensor", "float"),
    ("cell", torch.Tensor.long, "float32 or float64", "torch.int64"),
    ("cell", torch.Tensor.half, "float32 or float64", "torch.float16"),
    ("cell", torch.Tensor.float, "torch.float64 on cpu like `positions`", "torch.float32 on cpu"),
    ("cell", torch.Tensor.tolist, "a torch.Tensor", "list"),
    ("pbc", torch.Tensor.double, "of dtype bool", "torch.float64"),
    ("pbc", torch.Tensor.long, "of dtype bool", "torch.int64"),
    ("pbc", lambda _: True, "a torch.Tensor", "bool"),
    ("pbc", lambda _: (True, True, True), "a torch.Tensor", "tuple"),
    ("batch", torch.Tensor.int, "int64", "torch.int32"),
    ("batch", torch.Tensor.double, "int64", "torch.float64"),
    ("batch", torch.Tensor.tolist, "a torch.Tensor", "list"),
]


@pytest.mark.parametrize(("name", "change", "expected", "got"), WRONG_TYPES)
def test_a_wrong_type_is_named(name, change, expected, got):
    with pytest.raises(InputTypeError) as caught:
        energy(altered(name, change))
    check_message(caught.value, name, expected, got)


@pytest.mark.parametrize("name", ["charges", "cell", "batch"])
def test_a_tensor_on_another_device_is_named(name):
    with pytest.raises(InputTypeError) as caught:
        energy(altered(name, lambda x: x.to("meta")))
    check_message(caught.value, name, "(torch.float64 )?on cpu.*", "(torch.float64 on )?meta")


@pytest.mark.parametrize("positions", [torch.float32, torch.float64])
@pytest.mark.parametrize("periodic", [True, False])
def test_a_kernel_of_another_dtype_is_named(positions, periodic):
    other = torch.float64 if positions == torch.float32 else torch.float32
    charges, places, cell, pbc = random_structure(0, 3, periodic=periodic)
    model = LongRangeEnergy(sum_of_gaussians().to(other))
    with pytest.raises(InputTypeError) as caught:
        model(charges.to(positions), places.to(positions), cell.to(positions), pbc)
    check_message(caught.value, "kernel", f"{positions} like `positions`", str(other))


BAD_BATCHES = [
    (BATCH.flip(0), 2, "sorted in ascending order", "unsorted indices"),
    (BATCH.flip(0), None, "sorted in ascending order", "unsorted indices"),
    (BATCH * 2, None, "free of gaps", "structures without atoms"),
    (BATCH + 1, None, "free of gaps", "structures without atoms"),
    (BATCH - 1, 2, "in the range of num_graphs=2", "indices from -1 to 0"),
    (BATCH - 1, None, "in the range of num_graphs=None", "indices from -1 to 0"),
    (BATCH, 1, "in the range of num_graphs=1", "indices from 0 to 1"),
    (BATCH, 0, "in the range of num_graphs=0", "indices from 0 to 1"),
    (BATCH, -1, "in the range of num_graphs=-1", "indices from 0 to 1"),
    (None, 2, "given for num_graphs=2", "None"),
]


@pytest.mark.parametrize(("batch", "num_graphs", "expected", "got"), BAD_BATCHES)
def test_a_batch_that_does_not_index_structures_is_named(batch, num_graphs, expected, got):
    values = arguments() | {"batch": batch, "num_graphs": num_graphs}
    with pytest.raises(InputError) as caught:
        energy(values)
    check_message(caught.value, "batch", expected, got)


def test_a_cell_without_boundary_is_never_guessed():
    with pytest.raises(InputError, match="never guessed") as caught:
        energy(arguments() | {"pbc": None})
    check_message(caught.value, "pbc", "given with `cell`", "None")


def test_a_periodic_structure_without_cell_is_refused():
    with pytest.raises(InputError) as caught:
        energy(arguments() | {"cell": None})
    check_message(caught.value, "cell", "given for periodic structures", "None")


SINGULAR = {
    "zero": torch.zeros(3, 3),
    "a zero vector": torch.diag(torch.tensor([4.0, 0.0, 4.0])),
    "parallel": torch.tensor([[4.0, 0, 0], [8.0, 0, 0], [0, 0, 4.0]]),
    "coplanar": torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]),
    "coplanar after rounding": torch.tensor([[0.1, 0.7, 0.3], [0.4, 0.2, 0.9], [0, 0, 0]]),
    "minute": torch.eye(3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SINGULAR)
def test_a_periodic_singular_cell_is_refused(name, dtype):
    cell = SINGULAR[name].to(dtype)
    if name == "minute":
        cell = cell * torch.finfo(dtype).tiny ** 0.4
    if name == "coplanar after rounding":
        cell[2] = cell[0] + cell[1] / 3
    charges, positions, *_ = random_structure(0, 3)
    values = {"charges": charges.to(dtype), "positions": positions.to(dtype)}
    with pytest.raises(InputError, match="Set its `pbc` to False") as caught:
        energy(values | {"cell": cell, "pbc": PERIODIC}, Ewald())
    expected = "of non-zero volume where `pbc` is true"
    check_message(caught.value, "cell", expected, r"\[\[.*\]\] for structure 0")


def test_random_coplanar_cells_are_refused_in_float32():
    generator = torch.Generator().manual_seed(0)
    charges, positions, *_ = (x.float() for x in random_structure(0, 3))
    for _ in range(100):
        cell = 5.0 * torch.randn(3, 3, generator=generator)
        cell[2] = cell[:2].T @ torch.randn(2, generator=generator)
        with pytest.raises(InputError, match="of non-zero volume"):
            energy({"charges": charges, "positions": positions, "cell": cell, "pbc": PERIODIC})


def test_the_singular_structure_of_a_batch_is_named():
    with pytest.raises(InputError, match="for structure 1"):
        energy(altered("cell", put(0.0, 1)))


def test_a_singular_cell_of_an_open_structure_does_no_harm():
    values = altered("cell", put(0.0, 1)) | {"pbc": torch.stack([PERIODIC, OPEN])}
    assert bool(energy(values).energy.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flat_but_regular_cell_is_accepted(dtype):
    cell = torch.tensor([[3.0, 0, 0], [2.99, 0.05, 0], [1.0, 0.02, 0.1]], dtype=dtype)
    charges, positions, *_ = random_structure(0, 3)
    values = {"charges": charges.to(dtype), "positions": positions.to(dtype)}
    out = energy(values | {"cell": cell, "pbc": PERIODIC}, Ewald())
    assert bool(out.energy.isfinite().all())


@pytest.mark.parametrize("pbc", [[True, True, False], [False, True, False], [False, False, True]])
def test_slabs_and_wires_of_the_ewald_kernel_are_refused(pbc):
    with pytest.raises(BoundaryError, match="need a sum of Gaussians") as caught:
        energy(altered("pbc", put(torch.tensor(pbc), 1)), Ewald())
    expected = "all true or all false for each structure with the Ewald kernel"
    check_message(caught.value, "pbc", expected, re.escape(f"{pbc} for structure 1"))


@pytest.mark.parametrize("free", [0, 1, 2])
def test_cell_vectors_of_free_axes_are_never_read(free):
    pbc = PERIODIC.clone()
    pbc[free] = False
    values = altered("pbc", put(pbc, 1))
    expected = energy(values).energy
    values["cell"] = values["cell"].clone()
    values["cell"][1, free] = 0.0
    assert torch.equal(energy(values).energy, expected)


def test_a_slab_whose_periodic_rows_are_parallel_is_named():
    values = altered("pbc", put(torch.tensor([True, True, False]), 1))
    values["cell"] = values["cell"].clone()
    values["cell"][1, 1] = -2.0 * values["cell"][1, 0]
    with pytest.raises(InputError, match="of non-zero volume .* for structure 1"):
        energy(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_huge_cell_is_refused_before_allocation(dtype):
    cell = 1e6 * torch.eye(3, dtype=dtype)
    charges, positions, *_ = (x.to(dtype) for x in random_structure(0, 3))
    with pytest.raises(
        SizeError, match=r"edges of 1e\+06, 1e\+06, 1e\+06 Å needs .* modes .* Use a"
    ):
        energy({"charges": charges, "positions": positions, "cell": cell, "pbc": PERIODIC}, Ewald())


@pytest.mark.parametrize("edge", [1e60, 1e200])
def test_a_cell_of_unheard_of_size_is_refused(edge):
    charges, positions, *_ = random_structure(0, 3)
    cell = edge * torch.eye(3, dtype=DOUBLE)
    with pytest.raises(SOGError, match="cell"):
        energy({"charges": charges, "positions": positions, "cell": cell, "pbc": PERIODIC}, Ewald())


def test_too_many_structures_and_modes_are_refused_before_allocation():
    count = 200
    cell = 60.0 * torch.eye(3, dtype=DOUBLE).expand(count, 3, 3)
    values = {
        "charges": torch.ones(count, 1, dtype=DOUBLE),
        "positions": torch.zeros(count, 3, dtype=DOUBLE),
        "cell": cell,
        "pbc": PERIODIC.expand(count, 3),
        "batch": torch.arange(count),
    }
    # Where the machine has less memory than that, it is the memory that is named.
    message = r"200 structures .* modes|memory .*got [\d.]+ GB"
    with pytest.raises(SizeError, match=message):
        LongRangeEnergy(Ewald(0.4), backend="dense")(**values)


def test_too_many_pairs_are_refused_before_allocation():
    charges = torch.ones(40_000, 1)
    message = "structures of up to 40000 atoms have 8e.08 pairs.*Use a periodic box"
    with pytest.raises(SizeError, match=message):
        LongRangeEnergy(Ewald())(charges, torch.zeros(40_000, 3))


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, 1e-16, 0.2, 1.0, NAN, INF])
def test_a_tolerance_out_of_range_is_named(tolerance):
    with pytest.raises(ConfigError) as caught:
        LongRangeEnergy(Ewald(), tolerance=tolerance)
    check_message(caught.value, "tolerance", "between 1e-15 and 0.1", str(tolerance))


@pytest.mark.parametrize("tolerance", [1e-15, 0.1])
def test_the_ends_of_the_range_of_tolerances_work(tolerance):
    model = LongRangeEnergy(Ewald(), tolerance=tolerance)
    assert bool(model(**arguments()).energy.isfinite().all())


def test_charges_of_another_number_of_channels_than_the_kernel_are_named():
    with pytest.raises(InputError) as caught:
        energy(arguments(), sum_of_gaussians(num_channels=3))
    check_message(caught.value, "charges", "of 3 channels, as many as the kernel has", "2")


def module(**options):
    return SOGLongRange([4, 1], SOGConfig(**options)).double()


def module_arguments():
    values = arguments()
    charges = values.pop("charges")
    return {"features": charges.repeat(1, 3)[:, :5]} | values


BAD_FEATURES = [
    (lambda x: x[:, :4], InputError, r"of shape \(n_atoms=7, 5\)", r"shape \(7, 4\)"),
    (lambda x: x[:, 0], InputError, r"of shape \(n_atoms=7, 5\)", r"shape \(7,\)"),
    (lambda x: x[:6], InputError, r"of shape \(n_atoms=7, 5\)", r"shape \(6, 5\)"),
    (put(NAN, 3, 2), InputError, "finite", r"nan at index \(3, 2\)"),
    (put(-INF, 0, 4), InputError, "finite", r"-inf at index \(0, 4\)"),
    (torch.Tensor.long, InputTypeError, "float32 or float64", "torch.int64"),
    (torch.Tensor.half, InputTypeError, "float32 or float64", "torch.float16"),
    (torch.Tensor.float, InputTypeError, "torch.float64 on cpu like .*", "torch.float32 on cpu"),
    (lambda x: x.to("meta"), InputTypeError, ".* on cpu like .*", "torch.float64 on meta"),
    (torch.Tensor.tolist, InputTypeError, "a torch.Tensor", "list"),
    (lambda _: None, InputTypeError, "a torch.Tensor", "NoneType"),
]


@pytest.mark.parametrize("constraint", ["none", "neutral"])
@pytest.mark.parametrize(("change", "error", "expected", "got"), BAD_FEATURES)
def test_malformed_features_are_named(constraint, change, error, expected, got):
    values = module_arguments()
    values["features"] = change(values["features"])
    with pytest.raises(error) as caught:
        module(charge_constraint=constraint)(**values)
    check_message(caught.value, "features", expected, got)


def test_positions_of_another_dtype_than_the_module_are_named():
    values = {
        k: x.float() if k in ("positions", "cell") else x for k, x in module_arguments().items()
    }
    with pytest.raises(InputTypeError, match="`kernel` must be torch.float32 like `positions`"):
        module()(**values)


BAD_TOTALS = [
    (torch.tensor([1.0, NAN]), InputError, "finite", r"nan at index \(1,\)"),
    (torch.tensor([INF, 1.0]), InputError, "finite", r"inf at index \(0,\)"),
    (torch.tensor([1.0]), InputError, r"of shape \(n_graphs=2,\)", r"shape \(1,\)"),
    (torch.ones(2, 1), InputError, r"of shape \(n_graphs=2,\)", r"shape \(2, 1\)"),
    (torch.tensor(1.0), InputError, r"of shape \(n_graphs=2,\)", r"shape \(\)"),
    (torch.tensor([True, False]), InputTypeError, "real numbers", "torch.bool"),
    (torch.tensor([1j, 0]), InputTypeError, "real numbers", "torch.complex64"),
    ([1.0, 0.0], InputTypeError, "a torch.Tensor", "list"),
    (1.0, InputTypeError, "a torch.Tensor", "float"),
]


FRACTIONS = [[0.5, 0.0], [0.0, -1.002], [1.0, 0.9]]
charged = pytest.mark.parametrize(
    "charged", [{"charge_constraint": "total"}, {"charge_embedding": 2}], ids=str
)


@charged
@pytest.mark.parametrize("total", FRACTIONS)
def test_a_fractional_total_charge_is_refused_unless_it_is_meant(charged, total):
    values = {**module_arguments(), "total_charge": torch.tensor(total)}
    with pytest.raises(InputError, match="Set fractional_charge=True") as caught:
        module(**charged)(**values)
    index = 0 if total == [0.5, 0.0] else 1
    got = f"{total[index]:.6g} for structure {index}"
    check_message(caught.value, "total_charge", "a whole number of e", got)
    out = module(charge_constraint="total", fractional_charge=True)(**values)
    sums = torch.zeros(2, dtype=DOUBLE).index_add(0, BATCH, out.charges[:, 0])
    torch.testing.assert_close(sums, torch.tensor(total).double())


def test_rounded_sums_of_partial_charges_are_whole():
    values = {**module_arguments(), "total_charge": torch.tensor([0.9999, -2.0003])}
    module(charge_constraint="total")(**values)


@charged
@pytest.mark.parametrize(("total", "error", "expected", "got"), BAD_TOTALS)
def test_a_malformed_total_charge_is_named(charged, total, error, expected, got):
    with pytest.raises(error) as caught:
        module(**charged)(**module_arguments(), total_charge=total)
    check_message(caught.value, "total_charge", expected, got)


@pytest.mark.parametrize("error", [InputError, InputTypeError, ConfigError, SizeError])
def test_errors_are_what_a_caller_would_expect(error):
    assert issubclass(error, SOGError)
    assert issubclass(error, TypeError if error is InputTypeError else ValueError)


def test_boundary_errors_are_not_implemented_errors():
    assert issubclass(BoundaryError, NotImplementedError)
