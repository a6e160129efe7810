"""Objects in a photo by PyTorch and torchvision alone: python torch_export.py detector.pt2 photo.jpg"""

import json
import sys
import warnings

import cv2
import numpy as np
import torch
import torchvision  # noqa: F401  (the graph uses its operators)

warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch's own, of how it reads the file
extra = {"detector.json": ""}
detect = torch.export.load(sys.argv[1], extra_files=extra).module()
about = json.loads(extra["detector.json"])
rule = about["preprocessing"]
photo = cv2.cvtColor(cv2.imread(sys.argv[2]), cv2.COLOR_BGR2RGB)
scale = min(rule["min_size"] / min(photo.shape[:2]), rule["max_size"] / max(photo.shape[:2]))
height, width = (int(side * scale + 0.5) for side in photo.shape[:2])
step, least = rule["pad_to_multiple"], rule["least_side"]
padded = [max(least, -(-side // step) * step) for side in (height, width)]
images = np.zeros((about["batch"], 3, *padded), np.uint8)  # further images of a batch go into further places
images[0, :, :height, :width] = cv2.resize(photo, (width, height)).transpose(2, 0, 1)
sizes = np.zeros((about["batch"], 2), np.int64)  # a size of 0 says that a place is empty
sizes[0] = height, width

with torch.no_grad():
    answers = detect(torch.from_numpy(images), torch.from_numpy(sizes))
boxes, scores, labels, valid = (answer.numpy() for answer in answers)

to_photo = np.array([photo.shape[1] / width, photo.shape[0] / height] * 2)
for box, score, label in zip(boxes[0][valid[0]] * to_photo, scores[0][valid[0]], labels[0][valid[0]], strict=True):
    print(about["class_names"][label - 1], f"{score:.3f}", *(f"{value:.1f}" for value in box))
