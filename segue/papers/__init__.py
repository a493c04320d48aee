"""Published systems, one file each, and the table of all that the library knows."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segue.errors import SegueError

if TYPE_CHECKING:
    from segue.papers.base import Claim, Report, Scale


@dataclass(frozen=True)
class Paper:
    """A row of the table. source: year and arXiv number. module: the file in this package that holds the claim, empty
    while the paper is only planned. parts: the library's parts that come from it, modules or names below `segue`."""

    title: str
    source: str = ""
    module: str = ""
    parts: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        return "claim" if self.module else "planned"


PAPERS: dict[str, Paper] = {
    "aggressive-decoding": Paper(
        "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding",
        "2022, arXiv 2205.10350", "aggressive_decoding",
        ("decoding.draft.source", "decoding.draft.block", "decoding.accept.near_best", "objectives.masked")),
    "bert4rec": Paper(
        "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
        "2019, arXiv 1904.06690", "bert4rec",
        ("objectives.masked (RandomMask, LastMask)", "models.cloze", "models.stack (transform)",
         "training.recommenders", "analysis.ranking", "data.split (last)")),
    "bib": Paper(
        "Bidirectional Learning for Offline Model-based Biological Sequence Design (BIB)",
        "2023, arXiv 2301.02931", "bib",
        ("design.offline", "design.oracles", "design.reports", "objectives.regression")),
    "bio-xlstm": Paper(
        "Bio-xLSTM: Generative modeling, representation and in-context learning of biological and chemical sequences",
        "2024, arXiv 2411.04165", "bio_xlstm", ("mixers.xlstm", "models.equivariant", "objectives.infill")),
    "central-dogma": Paper(
        "Find Central Dogma Again: Leveraging Multilingual Transfer in Large Language Models",
        "2025, arXiv 2502.06253", "central_dogma",
        ("training.corpus", "kinds.codecs (BPECodec)", "kinds.codons", "data.pairs", "analysis.sweep",
         "models.classify")),
    "cl-llm-survey": Paper(
        "Continual Learning of Large Language Models: A Comprehensive Survey",
        "2024, arXiv 2404.16789", "cl_llm_survey",
        ("models.adapters", "models.delta", "continual.lora", "continual.merge", "continual.metrics",
         "training.recipe (SCHEDULES)")),
    "cl-thesis": Paper(
        "Continual Learning in Neural Networks", "2019, arXiv 1910.02718", "cl_thesis",
        ("continual.stream", "continual.importance", "continual.buffer", "continual.replay", "continual.compose",
         "continual.sparsity", "continual.experts", "models.perceptron")),
    "coda-prompt": Paper(
        "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning",
        "2023, arXiv 2211.13218", "coda_prompt",
        ("models.prompts", "continual.prompting", "objectives.classes (new)", "mixers.attention (given)")),
    "code-ood-cl": Paper(
        "On the Usage of Continual Learning for Out-of-Distribution Generalization in Pre-trained Language Models "
        "of Code",
        "2023, arXiv 2305.04106", "code_ood_cl",
        ("continual.rwalk", "continual.stream (domain_incremental, cumulative)", "continual.metrics",
         "analysis.calls")),
    "continual-few-shot": Paper(
        "Expanding continual few-shot learning benchmarks to include recognition of specific instances",
        "2022, arXiv 2209.07863", "continual_few_shot",
        ("continual.episodes", "continual.inner", "continual.buffer (Recent)", "models.classify")),
    "cot-expressivity": Paper(
        "The Expressive Power of Transformers with Chain of Thought",
        "2023, arXiv 2310.07923", "cot_expressivity",
        ("models.construction", "mixers.saturated", "models.automata", "models.turing", "tasks.automata")),
    "cpt-ift": Paper(
        "Balancing Continuous Pre-Training and Instruction Fine-Tuning: Optimizing Instruction-Following in LLMs",
        "2024, arXiv 2410.10739", "cpt_ift", ("models.delta", "continual.merge", "verbs.merge")),
    "curved-contrastive": Paper(
        "Imagination is All You Need! Curved Contrastive Learning for Abstract Sequence Modeling Utilized on Long "
        "Short-Term Dialogue Planning",
        "2022, arXiv 2211.07591", "curved_contrastive",
        ("analysis.turns", "data.pairs (relative_distances)", "objectives.contrastive (CosineRegression)",
         "analysis.embedding", "models.stack (pool)")),
    "cycle-prompt": Paper(
        "Learning How To Ask: Cycle-Consistency Refines Prompts in Multimodal Foundation Models (CyclePrompt)",
        "2024, arXiv 2402.08756", "cycle_prompt",
        ("programs.cycle", "programs.sandbox", "tasks.list_programs")),
    "ditto": Paper(
        "Learning to Break the Loop: Analyzing and Mitigating Repetitions for Neural Text Generation (DITTO)",
        "2022, arXiv 2206.02369", "ditto",
        ("objectives.repetition", "objectives.mixed", "analysis.texts (reinforcement, repetition)")),
    "diverse-beam-search": Paper(
        "Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models",
        "2016, arXiv 1610.02424", "diverse_beam_search", ("decoding.search.diverse", "analysis.texts")),
    "drakes": Paper(
        "Fine-Tuning Discrete Diffusion Models via Reward Optimization (DRAKES)",
        "2024, arXiv 2410.13643", "drakes",
        ("design.rewards", "design.steering", "design.oracles", "objectives.diffusion.exact_distribution")),
    "faster-lighter": Paper(
        "A Practical Survey on Faster and Lighter Transformers", "2021, arXiv 2103.14636", "faster_lighter",
        ("mixers.rules.Sparse", "mixers.attention (span)", "mixers.linformer", "mixers.reformer",
         "mixers.block_recurrent", "training.pruning", "objectives.distillation", "analysis.memory")),
    "flashrnn": Paper(
        "FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware",
        "2024, arXiv 2412.07752", "flashrnn", ("kernels.rnn", "kernels.tiles", "mixers.xlstm")),
    "gamegen-x": Paper(
        "GameGen-X: Interactive Open-world Game Video Generation", "2024, arXiv 2411.00769", "gamegen_x",
        ("models.flow", "models.spacetime", "models.control", "models.film", "objectives.flow", "decoding.flow",
         "tasks.sprites", "analysis.distributions")),
    "generator": Paper(
        "GENERator: A Long-Context Generative Genomic Foundation Model", "2025, arXiv 2502.07272", "generator",
        ("kinds.codecs (KmerCodec)", "kinds.nucleotides", "models.spelling", "objectives.marginal",
         "analysis.variants", "analysis.metrics (recovery)")),
    "gsm-plus-plus": Paper(
        "Best of Both Worlds: Advantages of Hybrid Graph Sequence Models (GSM, GSM++)",
        "2024, arXiv 2411.15671", "gsm_plus_plus",
        ("models.graphs", "kernels.graphs", "tasks.graphs", "kinds.graph")),
    "gumbel-and-discrete-diffusion": Paper(
        "Gumbel tricks and masked discrete diffusion: D3PM, SEDD, MDLM",
        "2021, arXiv 2107.03006", "gumbel_and_discrete_diffusion",
        ("models.diffusion", "objectives.diffusion", "decoding.diffusion", "kernels.gumbel")),
    "hpcr": Paper(
        "HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning",
        "2023, arXiv 2309.15038", "hpcr",
        ("models.classify", "objectives.classes", "objectives.contrastive", "continual.proxy", "continual.stream")),
    "hydra-heads": Paper(
        "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding",
        "2024, arXiv 2402.05109", "hydra_heads",
        ("models.heads", "objectives.draft_heads", "decoding.draft.heads", "verbs.speed_up")),
    "hydra-mixers": Paper(
        "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers",
        "2024, arXiv 2407.09941", "hydra_mixers", ("mixers.hydra", "mixers.matrix", "mixers.convolution")),
    "hypernetworks": Paper(
        "Continual Learning with Dependency Preserving Hypernetworks",
        "2022, arXiv 2209.07712", "hypernetworks", ("models.hypernetwork", "continual.hypernetwork")),
    "icl-functions": Paper(
        "Can Transformers Learn Sequential Function Classes In Context?",
        "2023, arXiv 2312.12655", "icl_functions",
        ("tasks.functions", "objectives.regression", "analysis.curves")),
    "just-read-twice": Paper(
        "Just read twice: closing the recall gap for recurrent language models",
        "2024, arXiv 2407.05483", "just_read_twice",
        ("mixers.jrt", "kernels.linear", "objectives.prefix", "tasks.sets")),
    "lightnet": Paper(
        "You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet",
        "2024, arXiv 2405.21022", "lightnet", ("mixers.lightnet", "mixers.average", "kernels.linear")),
    "lina-speech": Paper(
        "Lina-Speech: Gated Linear Attention is a Fast and Parameter-Efficient Learner for text-to-speech synthesis",
        "2024, arXiv 2410.23320", "lina_speech",
        ("models.adapters (InitialState)", "continual.state", "mixers.cross (by position)", "models.streams",
         "decoding.streams", "mixers.gla")),
    "llm-tree-search": Paper(
        "LLM Tree Search", "2024, arXiv 2410.19117", "llm_tree_search", ("decoding.search.tree",)),
    "longvq": Paper(
        "LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory",
        "2024, arXiv 2404.11163", "longvq", ("mixers.longvq", "mixers.average")),
    "lookahead": Paper(
        "Lookahead: An Inference Acceleration Framework for LLMs with Lossless Generation Accuracy",
        "2023, arXiv 2312.12728", "lookahead",
        ("decoding.draft.trie", "decoding.verify", "decoding.accept.walk")),
    "lssl": Paper(
        "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers, LSSL",
        "2021, arXiv 2110.13985", "lssl",
        ("mixers.lssl", "mixers.hippo", "mixers.ssm.scale_step_sizes")),
    "magic-word": Paper("What's the Magic Word? A Control Theory of LLM Prompting", "2023, arXiv 2310.04444",
                        "magic_word", ("analysis.control",)),
    "making-the-most": Paper(
        "Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers",
        "2024, arXiv 2408.16241", "making_the_most",
        ("training.adapt", "models.windows", "objectives.sundae", "decoding.denoise", "decoding.search.exact",
         "decoding.search.conditional", "decoding.search.foresight")),
    "mamba-360": Paper(
        "Mamba-360: Survey of State Space Models as Transformer Alternative for Long Sequence Modelling",
        "2024, arXiv 2404.16112", "mamba_360",
        ("mixers.mamba2", "mixers.lru", "mixers.gss", "mixers.hyena", "mixers.hippo.compress_signal", "kernels.ssd")),
    "masformer": Paper(
        "Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer (MASFormer)",
        "2023, arXiv 2310.12442", "masformer", ("mixers.attention (block)", "mixers.rules.Sparse", "training.learn")),
    "music-transformer": Paper(
        "Music Transformer", "2018, arXiv 1809.04281", "music_transformer",
        ("mixers.attention (relative, traits)", "mixers.traits", "mixers.positions.skew", "analysis.memory")),
    "negative-eigenvalues": Paper(
        "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
        "2024, arXiv 2411.12537", "negative_eigenvalues",
        ("mixers.delta", "mixers.mamba", "kernels.delta", "tasks.automata")),
    "next-element": Paper(
        "An Interdisciplinary Comparison of Sequence Modeling Methods for Next-Element Prediction",
        "2018, arXiv 1811.00062", "next_element",
        ("models.counts", "models.classical", "models.predict", "analysis.metrics", "kinds.table")),
    "order-matters": Paper(
        "Order Matters: Sequence to sequence for sets", "2015, arXiv 1511.06391", "order_matters",
        ("models.pointer.SetEncoder", "objectives.order", "tasks.geometry")),
    "partial-attention-lm": Paper(
        "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder",
        "2023, arXiv 2304.04052", "partial_attention_lm", ("mixers.partial", "analysis.influence")),
    "peptide": Paper(
        "Peptide Sequencing Via Protein Language Models", "2024, arXiv 2408.00892", "peptide",
        ("objectives.masked (LetterMask)", "objectives.diffusion (known)", "data.clusters", "data.split (cluster)",
         "analysis.blanks")),
    "playlists": Paper(
        "Representation, Exploration and Recommendation of Music Playlists",
        "2019, arXiv 1907.01098", "playlists",
        ("models.autoencoder", "models.sif", "analysis.embedding", "analysis.probes", "analysis.index", "verbs.embed")),
    "pointer-networks": Paper(
        "Pointer Networks", "2015, arXiv 1506.03134", "pointer_networks",
        ("models.pointer", "tasks.geometry", "decoding.constrain.EachOnce")),
    "prompt-tpp": Paper(
        "Prompt-augmented Temporal Point Process for Streaming Event Sequence, PromptTPP",
        "2023, arXiv 2310.04993", "prompt_tpp",
        ("models.point_process", "models.prompts", "models.hawkes", "objectives.events", "continual.alternate",
         "training.timed")),
    "recformer": Paper(
        "Text Is All You Need: Learning Language Representations for Sequential Recommendation (Recformer)",
        "2023, arXiv 2305.13731", "recformer",
        ("kinds.items", "models.stack (tables)", "mixers.attention (global_projections)",
         "objectives.contrastive (InBatch, AllItems)", "objectives.masked (whole_words)", "analysis.items",
         "training.recommenders", "training.two_stage")),
    "recurrent-gpt": Paper(
        "RecurrentGPT: Interactive Generation of (Arbitrarily) Long Text",
        "2023, arXiv 2305.13304", "recurrent_gpt",
        ("programs.recurrent", "programs.memory", "programs.sections", "tasks.journeys", "tasks.answers")),
    "restriction-site": Paper(
        "Machine learning applications to DNA subsequence and restriction site analysis",
        "2020, arXiv 2011.03544", "restriction_site",
        ("kinds.nucleotides", "analysis.restriction", "analysis.binary", "models.estimators", "models.motifs")),
    "rnn-review": Paper(
        "A Critical Review of Recurrent Neural Networks for Sequence Learning",
        "2015, arXiv 1506.00019", "rnn_review",
        ("mixers.recurrent", "mixers.bidirectional", "training.truncated")),
    "s4": Paper(
        "Efficiently Modeling Long Sequences with Structured State Spaces, S4",
        "2021, arXiv 2111.00396", "s4",
        ("mixers.s4", "mixers.s4d", "mixers.dss", "mixers.hippo", "kernels.scan.diagonal_scan",
         "kernels.convolution")),
    "s5-rl": Paper(
        "Structured State Space Models for In-Context Reinforcement Learning",
        "2023, arXiv 2303.03982", "s5_rl",
        ("mixers.s5", "kernels.scan.linear_scan", "objectives.policy")),
    "seq-star": Paper(
        "Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models, SEQ*",
        "2023, arXiv 2312.07887", "seq_star",
        ("models.classify", "continual.freeze", "continual.probing", "analysis.probes")),
    "sequence-generation-metrics": Paper(
        "Sequence generation metrics", "", "sequence_generation_metrics",
        ("analysis.registry", "analysis.distributions", "analysis.texts", "analysis.metrics", "analysis.ranking",
         "analysis.binary (calibration_error)", "continual.metrics", "verbs.score")),
    "sequence-parallelism": Paper(
        "Sequence Parallelism: Long Sequence Training from System Perspective",
        "2021, arXiv 2105.13120", "sequence_parallelism",
        ("parallel.ring", "parallel.blocks", "parallel.context", "parallel.shard", "parallel.tensor",
         "parallel.communicate", "analysis.memory (saved_memory)")),
    "sequencematch": Paper(
        "SequenceMatch: Imitation Learning for Autoregressive Sequence Modelling with Backtracking",
        "2023, arXiv 2306.05426", "sequencematch",
        ("objectives.occupancy", "decoding.verify (backspace)")),
    "set-based-prompting": Paper(
        "Set-Based Prompting: Provably Solving the Language Model Order Dependency Problem",
        "2024, arXiv 2406.06581", "set_based_prompting", ("decoding.prompt",)),
    "sharp": Paper(
        "SHARP: Sparsity and Hidden Activation RePlay for Neuro-Inspired Continual Learning",
        "2023, arXiv 2305.18563", "sharp",
        ("models.sparse", "continual.sharp", "continual.buffer (Recent, quantised)", "objectives.contrastive",
         "models.classify")),
    "skipdecode": Paper(
        "SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference",
        "2023, arXiv 2307.02628", "skipdecode",
        ("models.depth", "mixers.layout.LayerNodes", "decoding.draft (depth)", "training.learn")),
    "spar": Paper(
        "SPaR: Self-Play with Tree-Search Refinement to Improve Instruction-Following in LLMs",
        "2024, arXiv 2412.11605", "spar",
        ("objectives.preference", "programs.judge", "programs.refine", "tasks.lilt")),
    "story-dalle": Paper(
        "StoryDALL-E: Adapting Pretrained Text-to-Image Transformers for Story Continuation",
        "2022, arXiv 2209.06192", "story_dalle",
        ("models.retrofit", "models.segments", "models.images", "models.prompts (PromptTuning)",
         "models.seq2seq (ConditionedDecoder)", "mixers.cross (first)", "objectives.images", "tasks.stories",
         "analysis.metrics (frame_metrics)")),
    "successive-prompting": Paper(
        "Successive Prompting for Decomposing Complex Questions",
        "2022, arXiv 2212.04092", "successive_prompting",
        ("programs.successive", "programs.tools", "analysis.drop", "tasks.ledger", "tasks.answers")),
    "successor-heads": Paper(
        "Successor Heads: Recurring, Interpretable Attention Heads In The Wild",
        "2023, arXiv 2312.09230", "successor_heads",
        ("analysis.circuits", "analysis.features", "analysis.probes (shuffled_probe)", "verbs.look")),
    "theme-transformer": Paper(
        "Theme Transformer: Symbolic Music Generation with Theme-Conditioned Transformer",
        "2021, arXiv 2111.04093", "theme_transformer",
        ("mixers.regions", "models.stack (gated cross-attention)", "training.motifs", "analysis.repeats",
         "objectives.contrastive")),
    "tokenring": Paper(
        "TokenRing: An Efficient Parallelism Framework for Infinite-Context LLMs via Bidirectional Communication",
        "2024, arXiv 2412.20501", "tokenring",
        ("parallel.schedule", "parallel.ring", "parallel.blocks", "parallel.shard",
         "parallel.communicate (Links, Throttled, Counted)")),
    "vif-rag": Paper(
        "Toward General Instruction-Following Alignment for Retrieval-Augmented Generation (VIF-RAG, FollowRAG)",
        "2024, arXiv 2410.09584", "vif_rag",
        ("programs.verifiers", "programs.sandbox", "programs.crosscheck", "programs.pipeline", "programs.judge",
         "tasks.lilt")),
}


def paper(slug: str) -> Paper:
    if slug not in PAPERS:
        import difflib

        near = difflib.get_close_matches(slug, PAPERS, n=3)
        raise SegueError(f"paper '{slug}' is unknown: " + (f"did you mean {' or '.join(near)}?" if near else
                                                           "`segue papers` lists them all"))
    return PAPERS[slug]


def claim(slug: str) -> Claim:
    """The claim of a paper."""
    module = paper(slug).module
    if not module:
        ready = ", ".join(name for name, row in PAPERS.items() if row.module)
        raise SegueError(f"paper '{slug}' is planned, its claim is not there yet: choose from {ready}")
    return importlib.import_module(f"segue.papers.{module}").CLAIM


def reproduce(slug: str, scale: Scale = "cpu", seed: int = 0, out: str | Path | None = None,
              data: str | Path | None = None, quiet: bool = False) -> Report:
    """Run a paper's headline claim and give its report: table, the paper's figures, verdict by the rule, picture.

    scale: "smoke" (seconds, wiring only, no verdict), "cpu" (minutes on two cores) or "gpu".
    out: folder for the report (JSON), the picture (PNG) and what is done so far; run again to go on.
    data: folder that holds the data sets by name (default: the environment variable SEGUE_DATA, else ./data or
        ../shared/data where there is one).
    """
    from segue.papers.base import run_claim

    usual = (folder for folder in ("data", "../shared/data") if Path(folder).is_dir())
    return run_claim(claim(slug), scale, seed, out, data or os.environ.get("SEGUE_DATA") or next(usual, None), quiet)
