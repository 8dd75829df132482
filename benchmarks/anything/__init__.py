"""Exits of anything that answers early: forests, boosting, bagging, neighbours, passes with dropout.

The rule, written before any run:

* Eight problems that scikit-learn carries or makes, and Banking77 (`problems.py`). A model learns
  from rows of its own. All its members answer all other rows, in blocks: that is the population.
* **Table.** Some rows of the population certify, the others are fresh. Every way gets the same
  rows, the same level (1% and 2%), the confidence 95%, the same fixed-sequence test by the exact
  binomial bound, and thresholds fixed without any data; for ordered members, of which a third of
  the rows chooses the statistic, that third is among the rows that certify. Reported are the mean
  members that were asked on fresh rows and the share of fresh rows that have another answer than
  that of all members.
* **Ways.** Ours is `Ensemble.certify`. Rivals: the same number of members for every row; the margin
  of the shares; the Beta rule of adaptive self-consistency (Aggarwal et al. 2023), and the
  instance-based pruning of Hernández-Lobato et al. (2009), both with a certified threshold as ours
  has, and as published, at 0.95 and 0.99, which promise something else: that the leader stays. As
  published they look after every member, as their authors do.
* **Redraws.** 1,000 rows are drawn from the population with replacement, and certify anew: the share
  of other answers on the whole population is then the true risk. A promise is broken if that is
  above the level; in 1,000 redraws at most 5% may be.
* **Seconds.** The model's own `predict` and that of the certified ensemble (level 2%) answer the
  fresh rows in turn, five times; the median ratio is reported. Neighbours are found all at once, so
  they have no seconds.
* Nothing is left out: where too few rows certify or nothing is saved, the table says so.
"""
