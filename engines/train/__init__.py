"""Training of the shipped models; needs the extra `train`, and no module that serves imports it.

network.py  the network and the step graph made of it
data.py     stays -> arrays, with random alignment and partly filled hours
fit.py      one member: loss, regularisation, early stopping
export.py   network -> model.onnx, golden.npz
pytorch.py  model.onnx -> network, for measuring PyTorch beside the engines
baselines.py  the learned baselines, by scikit-learn
facts.py    what the cards of the models of stays say beside figures; image_facts.py of those of pictures
vitals.py   cross-validation, calibration, policy, the model folder
"""
