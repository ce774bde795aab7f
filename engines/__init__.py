"""From rows of the patient window to calibrated risks; the models, and how they are made and judged.

config.json, model.onnx, golden.npz
    -> repository.load -> Engine                     digest, tensors and golden data checked
Mapping[name, float32[batch, ...]]
    -> Engine.run -> dict[name, float32[batch, ...]] the same bytes for a row in any batch
physionet2012:DIR
    -> physionet2012.read -> Stay -> bins -> schemas.window.rows
    -> steps.run_stays -> float32[stays, hours]      the served engine over whole stays
    -> evaluate_stays.report -> JSON -> report.page -> HTML
    -> train.vitals -> model folder                  extra `train`; imported by no module that serves
medmnist:FILE, images:DIR
    -> images.decode -> float32[height, width, 1 | 3] -> images.prepare -> float32[channels, height, width]
    -> evaluate_images.predict, train.imaging        the same preparation for training and serving
model.onnx
    -> precision.to_fp16 -> plans.obtain -> plan     TensorRT, or TensorRT for RTX without a GPU

errors.py               the error tree
engine.py               the interface; checks once what every backend may rely on
onnxruntime_backend.py  the only home of onnxruntime
repository.py           model folders in Triton's layout
plans.py                plans beside their model, each with its provenance; never a stale one
tensorrt_*.py           the only home of TensorRT; building. precision.py: graphs in fp16
bench.py, compare.py    how fast backends are, and how far apart. gpu_report.py: all of it, on a GPU
steps.py                what each kind of series model reads; an engine over whole stays, hour by hour
physionet2012.py        reader of the Challenge 2012 format
images.py               pictures decoded and made to fit; the only home of Pillow
dicom.py, dicom_*.py    DICOM: attributes, stored pixels, grey values; the only homes of pydicom
codestream.py           what a compressed stream claims, before it is decoded; limits.py: what is too large
decoded.py              what is known of a decoded picture: words, identity, quality flags
labelled.py             pictures of known class; medmnist.py, image_folder.py: where they come from
activation.py           where an image model looked, held to occlusion. disturbances.py: pictures made worse
metrics.py, judge.py    how good risks are: figures, bootstrap intervals, curves; numpy only
evaluate.py             a series model judged: hours, baselines, groups, missing channels, verdict
evaluate_*.py           a served model judged on stays or on pictures
report.py, report_*.py  an evaluation as one HTML page; extra `report`
baselines.py            what a model is compared with: boosted trees, regression, NEWS2, SAPS-I, SOFA
card.py, card_*.py      the model card, for machines and for people
models/                 the models that are shipped
"""
