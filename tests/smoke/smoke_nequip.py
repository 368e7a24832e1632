"""NequIP: one epoch of examples/nequip/long_range.yaml on made data; Allegro: one evaluation."""

from pathlib import Path

import ase.io
from installed import check_calculator, check_entry_points, check_imports, rock_salt, run

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "nequip"
ALLEGRO = {
    **{"base": "allegro.model.AllegroModel", "seed": 0, "model_dtype": "float64"},
    **{"type_names": ["Cl", "Na"], "r_max": 4.0, "avg_num_neighbors": 12.0, "sog": {}},
    **{"num_layers": 1, "l_max": 1, "num_scalar_features": 8, "num_tensor_features": 4},
    "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
}

check_imports("sog_longrange", "sog_nequip", "allegro", absent=("mace", "torch_geometric"))
check_entry_points("sog_longrange.calculators", "ckpt")

Path("data").mkdir()
ase.io.write("data/train.xyz", rock_salt(12))
ase.io.write("data/valid.xyz", rock_salt(4, seed=1))
options = ("data_folder=data", "types=[Cl,Na]", "max_epochs=1", "hydra.run.dir=trained")
run("nequip-train", "-cp", str(CONFIGS), "-cn", "long_range", *options)

from sog_nequip.calculator import SOGNequIPCalculator  # noqa: E402

atoms = rock_salt(1, seed=2)[0]
atoms.calc = SOGNequIPCalculator.from_saved_model("trained/last.ckpt", device="cpu")
check_calculator(atoms)

from nequip.data.ase import from_ase  # noqa: E402
from nequip.data.transforms import (  # noqa: E402
    ChemicalSpeciesToAtomTypeMapper,
    NeighborListTransform,
)
from nequip.utils.global_state import set_global_state  # noqa: E402

from sog_nequip.model import SOGModel  # noqa: E402

set_global_state()  # NequIP builds no models before

to_types = ChemicalSpeciesToAtomTypeMapper(["Cl", "Na"], {"Cl": "Cl", "Na": "Na"})
data = NeighborListTransform(r_max=4.0)(to_types(from_ase(atoms)))
print("Allegro, energy (eV):", float(SOGModel(**ALLEGRO)(data)["total_energy"].detach()))
