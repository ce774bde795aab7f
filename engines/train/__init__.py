"""Training of the shipped models; needs the extra `train`, and no other module imports it.

network.py  the network and the step graph made of it
data.py     stays -> arrays, with random alignment and partly filled hours
fit.py      one member: loss, regularisation, early stopping
export.py   network -> model.onnx, golden.npz
vitals.py   cross-validation, calibration, policy, the model folder
"""
