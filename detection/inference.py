"""The test of one or several detectors with everything that `test` in the config asks for (He et al. 2016, App. B).

    proposals of all -> union -> [score by all, average] x (1 + refine_rounds) -> union -> NMS -> voting

and all of it for each view of the test-time augmentation. With everything off and one detector it is that detector.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from configs.detection import TestConfig
from datasets.batch import Batch
from detection.alternating import PhaseModel
from detection.ensemble import average, unite_proposals
from detection.model import Detector
from detection.multi_scale import MultiScaleScorer
from detection.postprocess import BatchDetections, collect_candidates, suppress, to_original
from detection.refinement import join_rounds, next_rois, vote
from detection.scoring import Scorer
from detection.tta import merge, mirror_detections, views

TTA_VOTE_IOU = 0.5
"""The overlap of voters for `tta.merge: vote` where `vote_iou` is null: the paper's."""


Tested = Detector | PhaseModel
"""What can be tested: a detector, or the model of a phase of alternating training."""


class Inference(nn.Module):
    """Detectors and what is done with them at test.

    Args:
        detectors: of the same classes. Their own thresholds do not count.
        test: thresholds, refinement, voting, sizes, test-time augmentation.
    """

    def __init__(self, detectors: Sequence[Tested], test: TestConfig) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(detectors)
        self._members = list(detectors)  # the same, of their own type
        self.test = test
        self.class_names = detectors[0].class_names

    @property
    def scales(self) -> tuple[int, ...]:
        """The shorter sides at which batches must bring their images along (`Batch.scaled`), ascending."""
        return tuple(sorted(self.test.scales or self.test.tta.scales))

    def forward(self, batch: Batch) -> BatchDetections:
        """Final boxes in pixels of the original images, scores and labels."""
        found = []
        for view, mirrored in views(batch, self.test.tta):
            detections = self._detect(view)
            found.append(mirror_detections(detections, batch.original_sizes) if mirrored else detections)
        if len(found) == 1:
            return found[0]
        vote_iou = (self.test.vote_iou or TTA_VOTE_IOU) if self.test.tta.merge == "vote" else None
        return merge(found, self._nms_thresh, self.test.detections_per_img, vote_iou)

    def _detect(self, batch: Batch) -> BatchDetections:
        """One view through proposals, rounds, NMS and voting."""
        test = self.test
        if len(self._members) == 1 and not (test.refine_rounds or test.vote_iou or test.scales):
            return self._members[0].detect(batch, test=test)
        scorers, proposals = [], []
        for detector in self._members:
            assert not isinstance(detector, PhaseModel), "a phase is validated by the plain test"
            features = detector.features(batch)
            proposals.append(detector.rpn(features, batch.image_sizes, training=False)[0])
            scorers.append(
                MultiScaleScorer(detector, features, batch, test.canonical_size)
                if test.scales
                else Scorer(detector, features, batch.image_sizes)
            )
        rois, valid = unite_proposals(proposals) if len(proposals) > 1 else (proposals[0].boxes, proposals[0].valid)
        rounds = [average([scorer(rois, valid) for scorer in scorers])]
        for _ in range(test.refine_rounds):
            rois, valid = next_rois(rounds[-1])
            rounds.append(average([scorer(rois, valid) for scorer in scorers]))
        candidates = collect_candidates(*join_rounds(rounds), test.score_thresh)
        kept = suppress(candidates, self._nms_thresh, self.test.detections_per_img)
        if test.vote_iou:
            kept = vote(kept, candidates, test.vote_iou)
        return to_original(kept, batch.image_sizes, batch.original_sizes)

    @property
    def _nms_thresh(self) -> float:
        return self.test.refine_nms_thresh if self.test.refine_rounds else self.test.nms_thresh
