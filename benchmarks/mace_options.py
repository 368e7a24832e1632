"""Options of `mace_run_train` that the benchmarks of MACE train with."""

from __future__ import annotations

COMMON = (
    "--model=ScaleShiftMACE",
    "--max_ell=2",
    "--correlation=2",
    "--MLP_irreps=16x0e",
    "--num_radial_basis=8",
    "--energy_key=REF_energy",
    "--forces_key=REF_forces",
    "--amsgrad",
    "--ema",
    "--ema_decay=0.99",
    "--scheduler=ExponentialLR",
    "--error_table=PerAtomRMSE",
    "--device=cpu",
    "--plot=False",
)
GAS = (
    "--E0s={11:0.0,17:0.0}",
    "--num_interactions=1",
    "--hidden_irreps=16x0e",
    "--radial_MLP=[32,32]",
    "--r_max=5.0",
    "--batch_size=4",
    "--valid_batch_size=8",
    "--lr=0.01",
    "--forces_weight=100",
    "--energy_weight=1",
    "--default_dtype=float32",
)
DIMERS = (
    "--E0s=average",
    "--num_interactions=2",
    "--hidden_irreps=32x0e+32x1o",
    "--radial_MLP=[32,32,32]",
    "--r_max=4.5",
    "--batch_size=2",
    "--valid_batch_size=10",
    "--lr=0.02",
    "--forces_weight=100",
    "--energy_weight=3000",
    "--eval_interval=10",
    "--default_dtype=float64",
)
# It sees its cutoff and nothing else: what is farther is left to a head.
ONE_LAYER = (*DIMERS, "--num_interactions=1", "--hidden_irreps=32x0e")
PEPTIDES = (
    "--E0s=average",
    "--num_interactions=2",
    "--hidden_irreps=32x0e+32x1o",
    "--radial_MLP=[32,32,32]",
    "--r_max=4.0",
    "--batch_size=2",
    "--valid_batch_size=10",
    "--lr=0.01",
    "--forces_weight=100",
    "--energy_weight=10",
    "--default_dtype=float32",
)
LIQUID = (
    "--num_interactions=2",
    "--hidden_irreps=16x0e+16x1o",
    "--radial_MLP=[32,32]",
    "--r_max=4.5",
    "--batch_size=2",
    "--valid_batch_size=5",
    "--lr=0.01",
    "--forces_weight=100",
    "--energy_weight=10",
    "--default_dtype=float32",
)
BOXES = (*LIQUID, "--num_interactions=1", "--hidden_irreps=16x0e")
SURFACE = (
    "--E0s=average",
    "--num_interactions=2",
    "--max_ell=1",
    "--hidden_irreps=8x0e",
    "--MLP_irreps=4x0e",
    "--radial_MLP=[8]",
    "--num_radial_basis=4",
    "--r_max=4.5",
    "--batch_size=4",
    "--valid_batch_size=10",
    "--lr=0.01",
    "--scheduler=ReduceLROnPlateau",
    "--scheduler_patience=5",
    "--ema_decay=0.0",
    "--forces_weight=100",
    "--energy_weight=10",
    "--eval_interval=70",
    "--default_dtype=float32",
)
