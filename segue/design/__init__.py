"""Design of sequences that score high: oracles, reward fine-tuning, steered sampling, design from a table."""

from segue.design.offline import Bidirectional, BilevelScalar, OfflineDesign, SoftDesign, ascend
from segue.design.oracles import (
    Encoder,
    NetworkOracle,
    Oracle,
    OraclePair,
    RidgeHead,
    RidgeOracle,
    TableOracle,
    ridge,
    sequence_index,
    soft_kmers,
)
from segue.design.reports import Percentiles, diversity, percentile_report
from segue.design.rewards import KL_FORMS, GumbelRollout, RewardFineTuning, path_kl
from segue.design.steering import STEERED, classifier_free, sample_steered

__all__ = ["KL_FORMS", "STEERED", "Bidirectional", "BilevelScalar", "Encoder", "GumbelRollout", "NetworkOracle",
           "OfflineDesign", "Oracle", "OraclePair", "Percentiles", "RewardFineTuning", "RidgeHead", "RidgeOracle",
           "SoftDesign", "TableOracle", "ascend", "classifier_free", "diversity", "path_kl",
           "percentile_report", "ridge", "sample_steered", "sequence_index", "soft_kmers"]
