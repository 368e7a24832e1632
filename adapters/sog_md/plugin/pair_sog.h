// pair_style sog: a model that sog_mace_export wrote, with all atoms on one rank.
#pragma once

#include <torch/script.h>

#include <string>
#include <vector>

#include "pair.h"

namespace LAMMPS_NS {

class PairSOG : public Pair {
 public:
  explicit PairSOG(LAMMPS *lmp);
  ~PairSOG() override;

  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void compute(int eflag, int vflag) override;
  void *extract_peratom(const char *name, int &columns) override;

 private:
  struct Edges {
    std::vector<int64_t> first, second;
    std::vector<double> shifts;
  };

  void allocate();
  void load(const std::string &path);
  void choose_elements(char **symbols);
  std::vector<int> owners() const;
  Edges find_edges() const;
  std::vector<torch::jit::IValue> inputs(bool per_atom) const;
  torch::Tensor result(const c10::Dict<torch::jit::IValue, torch::jit::IValue> &out,
                       const char *name) const;

  torch::jit::Module model;
  torch::Device device = torch::kCPU;
  torch::ScalarType dtype = torch::kFloat64;
  double cutoff = 0.0;
  double total_charge = 0.0;
  bool has_total_charge = false;
  std::vector<int64_t> numbers;  // atomic number of each type
  std::vector<double> charges;   // of the first channel, for each atom
};

}    // namespace LAMMPS_NS
