"""ImageNet localisation: a per-class RPN, then an R-CNN on its proposals (He et al. 2016, App. C).

The class is given (the true one, or predicted ones); what is sought is its box. Both networks have K binary logistic
outputs and K x 4 deltas, of which only those of the classes that are asked for are computed.
"""

from detection.localisation.checkpoint import KIND, Localiser, build_localiser, load_localiser
from detection.localisation.layers import Candidates
from detection.localisation.merging import merge, propose, rescore, suppress
from detection.localisation.rcnn import PerClassRcnn
from detection.localisation.rpn import PerClassRpn

__all__ = [
    "KIND",
    "Candidates",
    "Localiser",
    "PerClassRcnn",
    "PerClassRpn",
    "build_localiser",
    "load_localiser",
    "merge",
    "propose",
    "rescore",
    "suppress",
]
