"""What the numbered examples and the benchmarks have in common.

charge_network
    A network of PyG with or without a long-range layer between its message-passing layers.
charged_molecules
    Data: molecules at charges -1, 0 and +1, labelled with IPEA1-xTB.
coulomb_gas
    Data: ions with exact Coulomb forces in periodic boxes.
demo
    What the demos of two models do alike: train them, end with results, report errors.
dimers
    Data: dimers at many separations, labelled with GFN2-xTB.
engine_models
    The models of the examples of simulation engines.
evaluation
    Errors of predicted energies and forces.
figures
    Figures of the demos.
mace_runs
    Train and evaluate MACE models with the commands of MACE.
nequip_runs
    Train and evaluate NequIP models with the commands of NequIP.
own_data
    A user's own labelled structures, read and split.
pyg_training
    Training of PyG models, and their errors.
training
    Several trainings at once, with one progress bar each.
"""
