// Registers pair_style nequip and allegro, of the sources that this is compiled with.
#include <cstring>

#include "error.h"
#include "lammps.h"
#include "lammpsplugin.h"
#include "pair_nequip_allegro.h"

using namespace LAMMPS_NS;

template <bool nequip_mode> static Pair *create(LAMMPS *lmp)
{
  return new PairNequIPAllegro<nequip_mode>(lmp);
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  auto *own = static_cast<LAMMPS *>(lmp);
  if (own->num_ver != SOG_LAMMPS_VERSION)
    own->error->all(FLERR,
                    "nequipplugin.so was built for LAMMPS {}, and this is {}: build it again by "
                    "python -m sog_md.build_pair_nequip", SOG_LAMMPS_VERSION, own->num_ver);
  const auto add = reinterpret_cast<lammpsplugin_regfunc>(regfunc);
  lammpsplugin_t plugin;
  memset(&plugin, 0, sizeof(plugin));
  plugin.version = own->version;
  plugin.style = "pair";
  plugin.author = "The authors of pair_nequip_allegro";
  plugin.handle = handle;
  plugin.name = "nequip";
  plugin.info = "compiled NequIP models";
  plugin.creator.v1 = reinterpret_cast<lammpsplugin_factory1 *>(&create<true>);
  add(&plugin, lmp);
  plugin.name = "allegro";
  plugin.info = "compiled Allegro models";
  plugin.creator.v1 = reinterpret_cast<lammpsplugin_factory1 *>(&create<false>);
  add(&plugin, lmp);
}
