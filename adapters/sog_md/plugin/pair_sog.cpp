#include "pair_sog.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "lammpsplugin.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "platform.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

namespace {

// The last line of what TorchScript throws is what the model said; the rest is a trace.
std::string last_line(const std::exception &error)
{
  std::string text = error.what();
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

}    // namespace

PairSOG::PairSOG(LAMMPS *lmp) : Pair(lmp)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
}

PairSOG::~PairSOG()
{
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

void PairSOG::settings(int narg, char **arg)
{
  // LAMMPS keeps the object where the same style is given again.
  total_charge = 0.0;
  has_total_charge = false;
  device = torch::kCPU;
  for (int i = 0; i < narg; i += 2) {
    if (i + 1 == narg) error->all(FLERR, "pair_style sog: {} has no value", arg[i]);
    if (strcmp(arg[i], "total_charge") == 0) {
      total_charge = utils::numeric(FLERR, arg[i + 1], false, lmp);
      has_total_charge = true;
    } else if (strcmp(arg[i], "device") == 0) {
      try {
        device = torch::Device(arg[i + 1]);
      } catch (const std::exception &) {
        error->all(FLERR, "pair_style sog: device must be cpu or cuda, got {}", arg[i + 1]);
      }
    } else {
      error->all(FLERR, "pair_style sog takes total_charge and device, got {}", arg[i]);
    }
  }
}

void PairSOG::allocate()
{
  if (allocated) return;
  const int n = atom->ntypes;
  memory->create(setflag, n + 1, n + 1, "pair:setflag");
  memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
  allocated = 1;
}

void PairSOG::coeff(int narg, char **arg)
{
  const int n = atom->ntypes;
  if (narg != 3 + n || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "pair_coeff of pair_style sog must be `* * file` and the elements of all {} atom "
               "types", n);
  allocate();
  load(arg[2]);
  choose_elements(arg + 3);
  for (int i = 1; i <= n; i++)
    for (int j = i; j <= n; j++) setflag[i][j] = 1;
}

void PairSOG::load(const std::string &path)
{
  if (!platform::file_is_readable(path))
    error->all(FLERR, "pair_style sog: cannot read the model {}", path);
  try {
    model = torch::jit::load(path, device);
    cutoff = model.attr("r_max").toDouble();
    dtype = model.attr("dtype").toStringRef() == "float32" ? torch::kFloat32 : torch::kFloat64;
    model.attr("symbols");
  } catch (const std::exception &problem) {
    error->all(FLERR, "pair_style sog: {} is no torchscript file of sog_mace_export: {}", path,
               last_line(problem));
  }
  if (model.attr("takes_total_charge").toBool() != has_total_charge)
    error->all(FLERR,
               has_total_charge
                   ? "pair_style sog: this model takes no total charge, leave total_charge out"
                   : "pair_style sog: this model needs `pair_style sog total_charge Q`");
}

void PairSOG::choose_elements(char **symbols)
{
  const auto known = model.attr("symbols").toListRef().vec();
  const auto own = model.attr("numbers").toIntVector();
  numbers.assign(1, 0);
  for (int type = 1; type <= atom->ntypes; type++) {
    const std::string wanted = symbols[type - 1];
    std::string all;
    int64_t number = 0;
    for (size_t k = 0; k < known.size(); k++) {
      all += " " + known[k].toStringRef();
      if (known[k].toStringRef() == wanted) number = own[k];
    }
    if (number == 0)
      error->all(FLERR, "pair_style sog: the model lacks the element {}, it knows{}", wanted, all);
    numbers.push_back(number);
  }
}

void PairSOG::init_style()
{
  if (comm->nprocs > 1)
    error->all(FLERR,
               "pair_style sog as a plugin runs on one rank, got {}: every charge acts on every "
               "atom. For several ranks there is sog_lammps", comm->nprocs);
  if (strcmp(update->unit_style, "metal") != 0)
    error->all(FLERR, "pair_style sog needs units metal, got {}", update->unit_style);
  if (atom->tag_enable == 0) error->all(FLERR, "pair_style sog needs atom IDs");
  if (atom->molecular != Atom::ATOMIC)
    for (int k = 1; k <= 3; k++)
      if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
        error->all(FLERR, "pair_style sog needs all neighbors, bonded ones too: write "
                          "`special_bonds lj/coul 1 1 1`");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairSOG::init_one(int, int)
{
  return cutoff;
}

// Local atom of each ID.
std::vector<int> PairSOG::owners() const
{
  tagint last = 0;
  for (int i = 0; i < atom->nlocal; i++) last = std::max(last, atom->tag[i]);
  std::vector<int> owner(last + 1, -1);
  for (int i = 0; i < atom->nlocal; i++) owner[atom->tag[i]] = i;
  return owner;
}

PairSOG::Edges PairSOG::find_edges() const
{
  Edges edges;
  const auto owner = owners();
  double **x = atom->x;
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      const int j = list->firstneigh[i][jj] & NEIGHMASK;
      const double d[3] = {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]};
      if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= cutoff * cutoff) continue;
      const int own = owner[atom->tag[j]];
      const double *a = x[j], *b = x[own];
      // Which image an atom is, from the lower triangular matrix of lattice vectors.
      const double w = std::round((a[2] - b[2]) / domain->zprd);
      const double v = std::round((a[1] - b[1] - w * domain->yz) / domain->yprd);
      const double u =
          std::round((a[0] - b[0] - v * domain->xy - w * domain->xz) / domain->xprd);
      edges.first.push_back(i);
      edges.second.push_back(own);
      edges.shifts.insert(edges.shifts.end(), {u, v, w});
    }
  }
  return edges;
}

std::vector<torch::jit::IValue> PairSOG::inputs(bool per_atom) const
{
  const int64_t n = atom->nlocal;
  const auto real = torch::TensorOptions().dtype(torch::kFloat64);
  const auto whole = torch::TensorOptions().dtype(torch::kInt64);
  auto positions = torch::empty({n, 3}, real), cell = torch::zeros({3, 3}, real);
  auto species = torch::empty({n}, whole);
  auto p = positions.accessor<double, 2>(), c = cell.accessor<double, 2>();
  auto z = species.accessor<int64_t, 1>();
  for (int64_t i = 0; i < n; i++) {
    for (int k = 0; k < 3; k++) p[i][k] = atom->x[i][k] - domain->boxlo[k];
    z[i] = numbers[atom->type[i]];
  }
  for (int k = 0; k < 3; k++) c[k][k] = domain->prd[k];
  c[1][0] = domain->xy;
  c[2][0] = domain->xz;
  c[2][1] = domain->yz;
  auto edges = find_edges();
  const int64_t m = edges.first.size();
  auto pairs = torch::stack({torch::tensor(edges.first, whole), torch::tensor(edges.second, whole)});
  auto shifts = torch::tensor(edges.shifts, real).view({m, 3});
  auto pbc = torch::zeros({3}, torch::kBool);
  for (int k = 0; k < 3; k++) pbc[k] = domain->periodicity[k] != 0;
  return {positions.to(device, dtype), cell.to(device, dtype), pbc.to(device), species.to(device),
          pairs.to(device),            shifts.to(device, dtype), total_charge,  per_atom};
}

torch::Tensor PairSOG::result(const c10::Dict<torch::jit::IValue, torch::jit::IValue> &out,
                              const char *name) const
{
  return out.at(name).toTensor().to(torch::kCPU, torch::kFloat64).contiguous();
}

void PairSOG::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom || cvflag_atom)
    error->all(FLERR, "pair_style sog: a long-range energy has no virials of single atoms");
  if (atom->nlocal == 0) return;
  torch::Tensor energy, energies, forces, tension, sources;
  try {
    const auto out = model.get_method("evaluate")(inputs(eflag_atom != 0)).toGenericDict();
    energy = result(out, "energy");
    energies = result(out, "atomic_energies");
    forces = result(out, "forces");
    tension = result(out, "virial");
    sources = result(out, "charges");
  } catch (const std::exception &problem) {
    error->all(FLERR, "pair_style sog: {}", last_line(problem));
  }
  if (!std::isfinite(energy.item<double>()))
    error->all(FLERR, "pair_style sog: the energy is not finite");
  const auto f = forces.accessor<double, 2>(), w = tension.accessor<double, 2>();
  const auto e = energies.accessor<double, 1>();
  const auto q = sources.accessor<double, 2>();
  charges.resize(atom->nlocal);
  for (int i = 0; i < atom->nlocal; i++) {
    for (int k = 0; k < 3; k++) atom->f[i][k] += f[i][k];
    if (eflag_atom) eatom[i] += e[i];
    charges[i] = q[i][0];
  }
  if (eflag_global) eng_vdwl += energy.item<double>();
  if (vflag_global) {
    const int row[6] = {0, 1, 2, 0, 0, 1}, column[6] = {0, 1, 2, 1, 2, 2};
    for (int k = 0; k < 6; k++) virial[k] += w[row[k]][column[k]];
  }
}

// For `fix pair ... sog charges 0`.
void *PairSOG::extract_peratom(const char *name, int &columns)
{
  if (strcmp(name, "charges") != 0) return nullptr;
  columns = 0;
  charges.resize(std::max<size_t>(charges.size(), atom->nmax));
  return charges.data();
}

static Pair *create(LAMMPS *lmp)
{
  return new PairSOG(lmp);
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  auto *own = static_cast<LAMMPS *>(lmp);
  if (own->num_ver != SOG_LAMMPS_VERSION)
    own->error->all(FLERR,
                    "sogplugin.so was built for LAMMPS {}, and this is {}: build it again by "
                    "python -m sog_md.build_plugin", SOG_LAMMPS_VERSION, own->num_ver);
  lammpsplugin_t plugin;
  memset(&plugin, 0, sizeof(plugin));
  plugin.version = own->version;
  plugin.style = "pair";
  plugin.name = "sog";
  plugin.info = "models with a long range, in TorchScript";
  plugin.author = "The sog-longrange developers";
  plugin.creator.v1 = reinterpret_cast<lammpsplugin_factory1 *>(&create);
  plugin.handle = handle;
  reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
