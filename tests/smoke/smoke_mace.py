"""MACE: the README's training command on made data, shortened, and what reads its model."""

import re
import shlex
from pathlib import Path

import ase.io
from installed import check_calculator, check_entry_points, check_imports, readme, rock_salt, run

SHORTER = (
    *("--train_file=made.xyz", "--valid_fraction=0.2", "--max_num_epochs=2"),
    *("--hidden_irreps=8x0e + 8x1o", "--r_max=4.0", "--device=cpu"),
)

check_imports("sog_longrange", "sog_mace", "sog_md", absent=("nequip", "torch_geometric"))
check_entry_points("sog_longrange.calculators", "model")
check_entry_points("console_scripts", "sog_mace_select_head", "sog_mace_prepare_data", "sog_preset")

ase.io.write("made.xyz", rock_salt(20))
(written,) = re.findall(
    r"^sog_mace_run_train (--name=.*?)\n```", readme(), re.DOTALL | re.MULTILINE
)
run("sog_mace_run_train", *shlex.split(written.replace("\\\n", " ")), *SHORTER)
(model,) = (path for path in Path().glob("*.model") if "stagetwo" not in path.name)

from sog_mace import SOGMACECalculator  # noqa: E402

atoms = rock_salt(1, seed=1)[0]
atoms.calc = SOGMACECalculator(str(model), device="cpu", default_dtype="float64")
check_calculator(atoms)
ase.io.write("structures.xyz", rock_salt(2, seed=2))
run("sog_mace_eval_configs", "--configs=structures.xyz", f"--model={model}", "--output=out.xyz")
print("evaluated:", sorted(ase.io.read("out.xyz").info))
