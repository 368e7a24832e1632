"""When kernels learn."""

import io

import pytest
import torch

from sog_longrange import ConfigError, SOGConfig, SOGLongRange
from sog_longrange.charges.dispersion import DispersionCoefficients
from sog_longrange.training import delay_kernel, parameter_groups


def make(start, *, total=10, optimizer=torch.optim.Adam, **options):
    torch.manual_seed(0)
    module = SOGLongRange([2], SOGConfig(**options))
    groups = parameter_groups([module], charges=0.01, kernel=0.01)
    made = optimizer(groups)
    delay_kernel([module], made, total, start)
    return module, made


def step(module, optimizer, closure=False):
    """One step with gradients that are all 1; what the kernel moved by."""
    kernel = module.energy.kernel.log_amplitudes
    before = kernel.detach().clone()

    def backward():
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)

    if closure:  # as Lightning does
        optimizer.step(backward)
    else:
        backward()
        optimizer.step()
    return float((before - kernel.detach()).mean())


@pytest.mark.parametrize("closure", [False, True])
def test_a_kernel_stays_and_gathers_no_momentum_before_its_share_of_steps(closure):
    module, optimizer = make(0.5)
    kernel, bias = module.energy.kernel, next(module.readout.parameters())
    first = bias.detach().clone()
    assert [step(module, optimizer, closure) for _ in range(5)] == [0.0] * 5
    assert kernel.log_amplitudes not in optimizer.state
    assert not torch.equal(bias.detach(), first)
    assert step(module, optimizer, closure) == 0.0, "the ramp begins at nothing"
    assert step(module, optimizer, closure) > 0.0
    assert int(optimizer.state[kernel.log_amplitudes]["step"]) == 1
    assert int(optimizer.state[bias]["step"]) == 7


def test_the_part_of_a_step_that_is_taken_rises_to_all_of_it():
    module, optimizer = make(0.4, optimizer=torch.optim.SGD)
    moved = [step(module, optimizer) for _ in range(10)]
    assert moved == pytest.approx([0, 0, 0, 0, 0, 0.005, 0.01, 0.01, 0.01, 0.01], abs=1e-7)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [("coulomb+dispersion(near=True)", [0.0, 0.01]), ("dispersion(near=True)", [0.01, 0.01])],
)
def test_values_of_dispersion_wait_for_charges_beside_them(kernel, expected):
    module, optimizer = make(
        0.1, total=2, optimizer=torch.optim.SGD, kernel=kernel, num_channels=kernel.count("+") + 1
    )
    (values,) = (m for m in module.readout.modules() if isinstance(m, DispersionCoefficients))
    moved = []
    for _ in range(2):
        before = values.log_elements.detach().clone()
        step(module, optimizer)
        moved.append(float((before - values.log_elements.detach()).mean()))
    assert moved == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("start", "expected"), [(0.0, 0.01), (1.0, 0.0)])
def test_kernels_learn_at_once_or_never(start, expected):
    module, optimizer = make(start, total=2, optimizer=torch.optim.SGD)
    assert [step(module, optimizer) for _ in range(4)] == pytest.approx([expected] * 4, abs=1e-7)


def test_a_restarted_training_goes_on_counting():
    module, optimizer = make(0.5)
    for _ in range(4):
        step(module, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    module, optimizer = make(0.5)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    moved = [step(module, optimizer) > 0.0 for _ in range(4)]
    assert moved == [False, False, True, True]


def test_what_cannot_be_delayed_is_refused():
    with pytest.raises(ConfigError, match="`kernel_start` must be from 0 to 1, got 1.5"):
        make(1.5)
    with pytest.raises(ConfigError, match="`total_steps` must be positive and finite, got inf"):
        make(0.5, total=float("inf"))
    module = SOGLongRange([2])
    optimizer = torch.optim.LBFGS(module.parameters())
    with pytest.raises(ConfigError, match="L-BFGS"):
        delay_kernel([module], optimizer, 10)
    fixed = SOGLongRange([2], SOGConfig(learn_amplitudes=False, learn_widths=False))
    delay_kernel([fixed], optimizer, float("inf"))


def test_charges_of_elements_have_a_rate_of_their_own():
    config = SOGConfig(readout="ions", kernel="coulomb+dispersion", num_channels=2)
    module = SOGLongRange([2], config, cutoff=3.0, atomic_numbers=(1, 8))
    rates = {"charges": 1e-2, "elements": 1e-3, "kernel": 1e-4}
    charges, elements, kernel = parameter_groups([module], **rates)
    assert [group["lr"] for group in (charges, elements, kernel)] == list(rates.values())
    flows = module.readout.parts[0]
    own = [getattr(flows, name) for name in flows.by_element]
    assert {id(p) for p in elements["params"]} == {id(p) for p in own}
    groups = (charges, elements, kernel)
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in module.parameters())
    (together, _) = parameter_groups([module], charges=1e-2, kernel=1e-4)
    assert {id(p) for p in own} <= {id(p) for p in together["params"]}
    atoms = SOGLongRange([2], SOGConfig())
    assert parameter_groups([atoms], **rates)[1]["params"] == []
    assert "lr" not in parameter_groups([atoms], charges=None)[0], "that of the optimizer"
