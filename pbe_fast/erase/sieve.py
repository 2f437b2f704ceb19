"""Sieve: progressive erasing that does not need to begin with clean images.

PBE (Mu et al., CVPR 2023) begins with a random subset, whose poison can teach the backdoor back,
and ranks images by how much purification changed their logits, which fails where purification did.
Sieve keeps its loop, adversarial fine-tuning on what is trusted and looking again, and changes what
is trusted:

1. *Split.* Classes whose images fall into two clusters in the infected model's activations are
   found (:mod:`pbe_fast.erase.split`). Nothing in them tells which cluster is poisoned, or whether
   either is: photographs of one sign form clusters, too.
2. *Round 0* fine-tunes, adversarially at first, on a share of each class. Classes that fell apart
   are left out, or where they are many, as with a trigger for every label, their smaller clusters.
   So are swollen ones, which have many more images than is usual: if that is poison, their own
   images may be too few to show as a cluster.
3. *Verdict* (:mod:`pbe_fast.erase.left_out`). The model of round 0 has not learned the label of
   what was left out. Poisoned images it sees as what they show: of a cluster alone, as another
   label for most; of a whole class, as many different ones where a trigger brought them in from
   many classes. Where neither is plain, the smaller cluster waits. A swollen class of which that
   says nothing is poisoned if most of it shows many different labels, and is parted by what its
   images have beside what they show. A second look at the classes that seemed whole goes by the
   losses of this model, and what that finds waits, too. Where many classes are plainly poisoned, or
   the smaller clusters of many lie nearer to other classes than to their own, there is a trigger
   for every label, and each image is judged by three witnesses (:mod:`pbe_fast.erase.witnesses`):
   whether it lies in a smaller cluster or along the trigger
   (:func:`pbe_fast.erase.trigger.find_triggered`), which class it is nearest to in the infected
   model's activations, and which class this model takes it for. What the last two agree on tells
   which class the trigger leads to which label. An image that only lies so, or of which they say
   too little, waits.
4. *Round 1* begins with the infected model's weights again, which are more accurate, and trains on
   all that is trusted, and on the suspects with the labels that the model of round 0 gives them,
   or, of a trigger for every label, with a class that it leads to theirs: triggered images with
   what they show are what unlearns a trigger best. What waits is not trained, nor are, unless there
   are witnesses, images of a poisoned class that may belong to either cluster, or that lie apart
   from the others of the trusted one.
5. *Second verdict.* What was not trained with its own label is trusted if the model of round 1
   gives that label to most of it, class by class. Else it is poisoned if it gets many different
   ones and is of more than a few images, or got them from the model of round 0, or if that is so
   in many classes; a single cluster with one other label may be photographs of something rare, and
   stays away. In a poisoned class an image that this model takes for something else becomes
   suspect, too, unless it takes most of the trusted cluster for one other class: then it has not
   learned the class, and what it takes for a third one waits. Where many classes are poisoned, it
   is the witnesses instead that judge each image, of which the third is now this model. Where what
   the suspects of many classes have beside what they show has no direction in common, there is no
   trigger: their labels are wrong.
6. *Round 2* goes on with the labels of that verdict. A suspect that the model of round 1 takes for
   what it is labelled is left out, unless it is known which class the trigger leads to that label.
7. *More rounds.* Suspects that are taken for what they are labelled show that the backdoor is
   still there, and need neither the trigger nor clean images for it. While they are more than a
   few, or a class is not learned, there is another such verdict and another round like round 2,
   twice at most.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pbe_fast.config import SieveConfig
from pbe_fast.data.augment import Augment
from pbe_fast.erase._classes import DISAGREE, LIKELY, Classes
from pbe_fast.erase._space import Ids, Mask, Space
from pbe_fast.erase.identify import Scores
from pbe_fast.erase.left_out import judge_clusters, judge_swollen
from pbe_fast.erase.progressive import Place, Round, Selection, first_subset
from pbe_fast.erase.ranking import KEPT
from pbe_fast.erase.split import Split, look_again, swollen_classes
from pbe_fast.erase.trigger import facts_of_many
from pbe_fast.erase.witnesses import Judged, judge_images
from pbe_fast.randomness import permutation
from pbe_fast.training import Stage

__all__ = ["Sieve"]

_MOST_WHOLE = 1 / 3  # of all classes may be left out as a whole
_MANY_POISONED = 1 / 3  # of all classes: then there is a trigger for every label
# Of the smaller clusters of many classes, on average: at most 0.02 in three benign models of a
# third of GTSRB, and at least 0.32 with triggers for every label of drawn signs.
_ELSEWHERE = 0.2
_LEAST_FIRST = 20  # images of a class in round 0, where it has so many


class Sieve:
    """The decisions of the method; everything is a pure function of what is given here.

    Args:
        labels: ``(N,)`` of the training set.
        num_classes: K.
        split: of the training set.
        activations: that it was made from, ``(N, D)``; asked for again after rounds.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.integer],
        num_classes: int,
        split: Split,
        activations: Callable[[], Scores],
        config: SieveConfig,
        seed: int,
    ) -> None:
        self.classes = Classes(labels, num_classes, split)
        self.labels = self.classes.labels
        self.activations, self.config, self.seed = activations, config, seed
        apart = {c.label for c in split.classes}
        swollen = swollen_classes(self.labels[self.classes.known])
        most = _MOST_WHOLE * len(np.unique(labels))
        # Where many classes are so large, that is how the data are.
        self._swollen = swollen if len(apart | swollen) <= most else set[int]()
        self._whole = apart | self._swollen if len(apart) <= most else set[int]()

    def rounds(self, augment: Augment, flip: bool) -> list[Round]:
        """Round 0 on a share of what is trusted, the others on all of it and the suspects."""
        config = self.config

        def stage(index: int) -> Stage:
            first = {"epochs": config.initial_epochs, "lr": config.initial_lr} if not index else {}
            return Stage.of(
                config.model_copy(update=first),
                name=f"round {index}",
                round=index,
                schedule="cosine",
                augment=augment,
                flip=flip,
                adversarial_epochs=0 if index else config.adversarial_epochs,
            )

        return [
            Round(stage(0), "outcome", self.judged),
            Round(stage(1), "outcome", self.judged_again, fresh=True),
            *(Round(stage(2 + i), "outcome", self.judged_more) for i in range(config.more_rounds)),
            Round(stage(2 + config.more_rounds), "outcome", None),
        ]

    def first(self) -> Ids:
        """The subset of round 0."""
        share = self.config.initial_fraction
        if not self.config.split:
            return first_subset(len(self.labels), share, self.seed)
        chosen = []
        trusted = self.classes.known & ~self.classes.second
        for label in set(np.unique(self.labels).tolist()) - self._whole:
            ids = np.flatnonzero(trusted & (self.labels == label))
            count = max(min(_LEAST_FIRST, len(ids)), round(share * len(ids)))
            order = permutation(len(ids), self.seed, "first subset", label)
            chosen.append(ids[order[:count]])
        return np.sort(np.concatenate(chosen)).astype(np.int64)

    def judged(self, outcome: Scores, place: Place) -> Selection:
        """After round 0: clusters that are plainly poisoned are suspect, others wait."""
        if not self.config.split:
            suspects = self.classes.differs(outcome)
            return self._selection(suspects, np.zeros_like(suspects), outcome[:, 1])
        suspects, waiting, trusted = np.zeros((3, len(self.labels)), bool)
        space = self._space()
        verdicts = judge_clusters(self.classes, self._whole, outcome)
        for verdict in verdicts:
            small, large = self.classes.clusters(verdict.split.label)
            if verdict.poisoned == "unclear":
                waiting |= small
            else:
                bad, good = (small, large) if verdict.poisoned == "smaller" else (large, small)
                suspects |= bad
                trusted |= good
                waiting |= good & (self.classes.between | self.classes.split.apart)
        swollen = []
        plain = {verdict.split.label for verdict in verdicts if verdict.poisoned != "unclear"}
        for label in sorted(self._swollen - plain):
            bad, unsure, facts = judge_swollen(self.classes, label, space, outcome)
            suspects |= bad
            waiting |= unsure
            swollen.append(facts)
        poisoned = [*plain, *(found["label"] for found in swollen if found["poisoned"])]
        again = self._look_again(space, outcome)
        likely = again.log_odds > LIKELY
        many = self._many(len(poisoned))
        facts = {
            "classes": [verdict.facts() for verdict in verdicts],
            "swollen": swollen,
            "second_look": [asdict(split) for split in again.classes],
        }
        clusters = (self.classes.second & ~trusted) | likely
        if self.config.witnesses and (many or self._lie_elsewhere(space, clusters)):
            judged = judge_images(self.classes, space, outcome, suspects | clusters, likely)
            if judged is not None:
                return self._chosen(judged, facts)
        waiting |= likely & ~np.isin(self.labels, poisoned)
        if many:
            suspects |= waiting & (self.classes.second | likely)
            waiting &= ~suspects
        return self._selection(suspects, waiting, outcome[:, 1], **facts)

    def judged_again(self, outcome: Scores, place: Place) -> Selection:
        """After round 1, class by class, with a model that has learned all labels."""
        return self._judged_by_class(outcome, place, self._diverse_before(place))

    def _judged_by_class(self, outcome: Scores, place: Place, before: list[int]) -> Selection:
        """Class by class.

        Args:
            before: classes that stay poisoned, or count among the many that are: a backdoor that
                outlives a round makes most of their images look right again.
        """
        left, differs = self.classes.untrusted(place), self.classes.differs(outcome)
        doubtful = self.classes.doubtful(left)
        others: dict[int, Scores] = {}  # of what is something else than its label, what it shows
        for label in np.unique(self.labels[left]).tolist():
            here = self.labels == label
            sure = left & here & ~doubtful
            sure = sure if sure.any() else left & here
            if differs[sure].mean() > DISAGREE:
                others[label] = outcome[sure & differs, 1]
        many = self._many(len({*others, *before}))
        diverse = {label for label, shown in others.items() if self.classes.diverse(shown)}
        poisoned = sorted({*(others if many else diverse), *before})
        odd = [label for label in others if label not in poisoned]
        suspects = np.isin(self.labels, poisoned) & (left | differs)
        facts: dict[str, Any] = {"odd": odd}
        waiting = left & np.isin(self.labels, odd)
        if not many:
            unlearned = self.classes.unlearned(poisoned, outcome, place)
            for own, unsure in unlearned.values():
                suspects &= ~own
                waiting |= unsure
            facts["unlearned"] = sorted(unlearned)
            return self._selection(suspects, waiting, outcome[:, 1], **facts, poisoned=poisoned)
        space = self._space()
        again = self._look_again(space, outcome)
        facts["second_look"] = [asdict(split) for split in again.classes]
        likely = again.log_odds > LIKELY
        if self.config.witnesses:
            judged = judge_images(self.classes, space, outcome, suspects & left, likely)
            if judged is not None:
                return self._chosen(judged, facts)
        suspects |= likely & ~np.isin(self.labels, poisoned)
        facts |= facts_of_many(space, suspects, outcome[:, 1])
        return self._selection(suspects, waiting, outcome[:, 1], **facts)

    def judged_more(self, outcome: Scores, place: Place) -> Selection | None:
        """After round 2 and later: once more, or None where the backdoor is gone.

        Or once more where a class has not been learned yet.
        """
        before = self.classes.relabelled(place)
        kept = self.classes.kept(outcome, place, before)
        unlearned = not self._many(len(before)) and self.classes.unlearned(before, outcome, place)
        if (kept is None or kept <= KEPT) and not unlearned:
            return None
        return self._judged_by_class(outcome, place, before)

    def _diverse_before(self, place: Place) -> list[int]:
        """The classes whose images were trained with so many other labels as a trigger gives."""
        if place.labels is None:
            return []
        given: dict[int, Ids] = {
            label: place.labels[(self.labels[place.subset] == label) & (place.labels != label)]
            for label in self.classes.relabelled(place)
        }
        return [label for label, others in given.items() if self.classes.diverse(others)]

    def _many(self, poisoned: int) -> bool:
        """Whether so many classes are poisoned that there must be a trigger for every label."""
        return self.config.split and poisoned > max(2, _MANY_POISONED * self.classes.num_classes)

    def _lie_elsewhere(self, space: Space, clusters: Mask) -> bool:
        """Whether smaller clusters of many classes lie nearer to other classes than to their own.

        Photographs that form a cluster mostly lie with their class all the same. Classes count
        alike, without the one of which most lies elsewhere: it may hold all of the poison.
        """
        classes = np.unique(self.labels[clusters])
        if not self._many(len(classes)):
            return False
        elsewhere = space.nearest(space.middles(clusters))[0] != self.labels
        shares = [elsewhere[clusters & (self.labels == label)].mean() for label in classes]
        return bool(np.mean(sorted(shares)[:-1]) > _ELSEWHERE)

    def _space(self) -> Space:
        """The infected model's activations, whitened by what the split found."""
        return Space.of(self.activations(), self.labels).whitened(self.classes.second)

    def _look_again(self, space: Space, outcome: Scores) -> Split:
        """What a second look finds."""
        if self.config.second_look:
            return look_again(space, self.classes.split, outcome[:, 0])
        return Split.of_nothing(len(self.labels))

    def _chosen(self, judged: Judged, facts: dict[str, Any]) -> Selection:
        """What witnesses have chosen."""
        facts = facts | judged.facts
        return self._selection(judged.suspects, judged.waiting, judged.shows, **facts)

    def _selection(
        self, suspects: Mask, waiting: Mask, shows: Ids | Scores, **facts: Any
    ) -> Selection:
        """What is trusted, and the suspects with the labels that they get, where those differ.

        Args:
            shows: ``(N,)``, what suspects show; where that is their label they are left out.
        """
        labels = self.labels.copy()
        changed = suspects & np.isfinite(shows) & (shows != labels) & self.config.relabel
        labels[changed] = shows[changed].astype(np.int64)
        ids = np.flatnonzero(changed | (self.classes.known & ~suspects & ~waiting))
        masks = {"suspects": suspects, "relabelled": changed, "waiting": waiting}
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        return Selection(ids, labels[ids], {**facts, **counts})
