"""Story continuation: rows of segments, what is put into a pretrained model, codes of pictures, and the stories."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segue.analysis.metrics import frame_metrics
from segue.decoding import generate
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import StackConfig
from segue.models.images import FrameClassifier, ImageTokenizer
from segue.models.prompts import PromptTuning
from segue.models.retrofit import Retrofitted, SequenceConditioner, insert_cross
from segue.models.segments import MultiSegmentLM
from segue.objectives import Batch
from segue.objectives.images import CodedReconstruction, FrameLabels, SegmentCrossEntropy
from segue.papers.story_dalle import CLAIM
from segue.tasks import stories
from segue.testing import check_model
from segue.training.learn import accuracy, learn

TEXT, CODES, WORDS, KINDS = 4, 9, 12, 7


def base(mixer: str = "attention", depth: int = 3, options: dict | None = None) -> MultiSegmentLM:
    torch.manual_seed(0)
    config = StackConfig(0, 16, [mixer] * depth, {mixer: options or {}}, norm="layer", channel="mlp")
    return MultiSegmentLM(config, [(WORDS, TEXT), (KINDS, CODES)]).eval()


def fitted(mixer: str = "attention", story: bool = True, prompts: bool = True, zero: bool = False) -> Retrofitted:
    lm = base(mixer)
    torch.manual_seed(1)
    model = Retrofitted(lm, [1, 2], story=SequenceConditioner(16, 16, mixer) if story else None,
                        prompts=PromptTuning(16, 5) if prompts else None).eval()
    for out in [] if zero else [*(cross.out for cross in model.cross), *([model.story.out] if model.story else [])]:
        nn.init.normal_(out.weight, std=0.3)
    return model


def rows(texts: list[int], seed: int = 0) -> list[list[int]]:
    """Whole rows, of sources with so many texts."""
    draw = np.random.default_rng(seed)
    sequences = []
    for count in texts:
        source = [*draw.integers(WORDS, WORDS + KINDS, CODES), *draw.integers(WORDS, size=count * TEXT)]
        sequences.append([*map(int, source), WORDS + KINDS, *map(int, source[-TEXT + 1 :]),
                          *map(int, draw.integers(WORDS, WORDS + KINDS, CODES))])
    return sequences


def test_only_ids_of_the_next_segment_are_generated() -> None:
    model = base()
    logits = model(torch.zeros(2, TEXT + CODES - 1, dtype=torch.long)).logits
    assert (logits[:, : TEXT - 1, WORDS:] == -torch.inf).all() and logits[:, : TEXT - 1, :WORDS].isfinite().all()
    assert (logits[:, TEXT - 1 :, :WORDS] == -torch.inf).all() and logits[:, TEXT - 1 :, WORDS:].isfinite().all()
    answers = generate(model, [[0, 1, 2, 3]] * 2, CODES, "sample", seed=3, top_k=4)
    assert all(min(answer.tokens) >= WORDS for answer in answers)
    assert model.ids(1).tolist() == list(range(WORDS, WORDS + KINDS)) and model.segment_start(1) == TEXT


def test_segments_have_their_loss_weights() -> None:
    model, [row] = base(), rows([1])
    tokens = torch.tensor([[0, *row[-TEXT - CODES + 1 :]]])
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    nats = F.cross_entropy(model(batch.tokens).logits[0], batch.targets[0], reduction="none")
    text, codes = nats[: TEXT - 1].mean(), nats[TEXT - 1 :].mean()
    for weights, mean in (({}, text + codes), ({0: 0.1}, 0.1 * text + codes), ({1: 2.0}, text + 2 * codes)):
        loss = SegmentCrossEntropy(model.owner, weights)(model, batch)
        torch.testing.assert_close(loss.total / loss.count, mean)


@pytest.mark.parametrize("mixer", ["attention", "gru", "gla"])
def test_segments_keep_the_contract_of_models(mixer: str) -> None:
    config = StackConfig(0, 16, [mixer] * 2, norm="layer")
    check_model(MultiSegmentLM(config, [(9, 40), (5, 4000)]).eval(), examples=4)


def test_new_ids_leave_old_embeddings_unchanged() -> None:
    model, tokens = base(), torch.tensor([[0, 3, 5, 1, 14, 15]])
    before = model(tokens).logits
    new = model.grow(0, 2)
    after = model(tokens).logits
    assert new.tolist() == [19, 20] and model.vocabulary == 21 and model.ids(0)[-2:].tolist() == [19, 20]
    torch.testing.assert_close(after[..., :19], before)
    assert after[0, 0, 19:].isfinite().all() and (after[0, -1, 19:] == -torch.inf).all()
    assert model(torch.tensor([[0, 19, 20]])).logits.shape == (1, 3, 21)
    with pytest.raises(SegueError, match="segment 2 cannot get 1 new ids"):
        model.grow(2, 1)


@pytest.mark.parametrize("mixer", ["attention", "gru", "gla", "mamba"])
@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("story", [True, False])
@torch.no_grad()
def test_the_cached_form_equals_the_full_one(mixer: str, prompts: bool, story: bool) -> None:
    model = fitted(mixer, story, prompts)
    for row in rows([1, 3]):
        ids = torch.tensor([row])
        full = model(ids).logits
        begin = row.index(model.begin)
        state = model.init_state(1)
        steps = [model.extend(ids[:, : begin + TEXT], state).logits]
        state.commit()
        for at in range(begin + TEXT, len(row)):
            steps.append(model.extend(ids[:, at : at + 1], state).logits)
            state.commit()
        torch.testing.assert_close(torch.cat(steps, 1)[:, begin:], full[:, begin:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_of_different_sources_decode_together() -> None:
    model, prompts = fitted(), [row[: row.index(WORDS + KINDS) + TEXT] for row in rows([1, 3, 2])]
    together = generate(model, prompts, CODES, "greedy")
    for prompt, answer in zip(prompts, together):
        assert generate(model, [prompt], CODES, "greedy")[0].tokens == answer.tokens
        assert min(answer.tokens) >= WORDS and len(answer.tokens) == CODES
        assert len(generate(model, [prompt], CODES, "sample", seed=1, top_k=3)[0].tokens) == CODES


@torch.no_grad()
def test_inserted_layers_start_as_the_base_model() -> None:
    """Zero cross-attention and story: the scores of the base model."""
    lm, [row] = base(), rows([2])
    inserted = fitted(prompts=False, zero=True)
    begin = row.index(inserted.begin)
    base_logits = lm(torch.tensor([[0, *row[begin + 1 :]]])).logits
    torch.testing.assert_close(inserted(torch.tensor([row])).logits[:, begin:, :-1], base_logits)


def test_codes_depend_on_the_source_and_words_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, [row] = fitted(), rows([2])
    begin, source = row.index(model.begin), torch.tensor([row[: row.index(model.begin)]])
    memory = model.memory(source, torch.tensor([begin])).detach().requires_grad_()
    monkeypatch.setattr(model, "memory", lambda *arguments: memory)
    scores = model(torch.tensor([row])).logits[0, begin:-1]
    moved = [torch.autograd.grad(score[score.isfinite()].square().sum(), memory, retain_graph=True)[0]
             for score in scores]
    assert [bool(gradient.abs().sum() > 0) for gradient in moved] == [False] * (TEXT - 1) + [True] * CODES


def test_the_story_memory_distinguishes_earlier_texts() -> None:
    model, [row] = fitted(prompts=False), rows([3])
    other = list(row)
    other[CODES] = (other[CODES] + 3) % WORDS  # a word of the first text
    begin = row.index(model.begin)
    first, second = (model(torch.tensor([sequence])).logits[0, begin:] for sequence in (row, other))
    assert (first - second)[first.isfinite()].abs().max() > 1e-4
    with pytest.raises(SegueError, match="at least one"):
        model(torch.tensor([[*row[:CODES], model.begin, 1]]))


def test_a_fact_that_only_an_earlier_caption_has_is_read_through_the_story() -> None:
    """Captions "begin name" and then "begin it": the codes depend on the name in the caption two before."""
    torch.manual_seed(0)
    names, pronoun, pad = 5, 7, 1
    lm = MultiSegmentLM(StackConfig(0, 32, ["attention"] * 2, norm="layer", channel="mlp"), [(8, 2), (names, 2)])
    model = Retrofitted(lm, [1], story=SequenceConditioner(32, 32), pad=pad)

    def batch(step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        source, character = (torch.randint(names, (64, 2), generator=draw) for _ in range(2))
        texts = torch.stack([torch.zeros(64, 4), F.pad(2 + character, (0, 2), value=pronoun)], 2).flatten(1).long()
        rows = torch.cat([8 + source, texts, torch.tensor([[model.begin, pronoun]]).expand(64, -1),
                          8 + character[:, 1:]], 1)
        return Batch(rows, F.pad(8 + character[:, 1:], (rows.shape[1] - 2, 1), value=-1))

    learn(model, batch, 60, rate=0.01, muon=True, objective=SegmentCrossEntropy(lm.owner))
    assert accuracy(model, batch(1000)) > 0.9


def test_prompt_tuning_trains_only_its_parameters() -> None:
    model = fitted()
    model.freeze()
    before = copy.deepcopy(model.state_dict())
    sequences = rows([2, 2, 2, 2])
    begin = sequences[0].index(model.begin)
    batch = Batch(torch.tensor(sequences)[:, :-1], torch.tensor([[-1] * begin + row[begin + 1 :] for row in sequences]))
    learn(model, lambda step: batch, 3, objective=SegmentCrossEntropy(model.lm.owner))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained_parts = ("story.", "prompts.", "source_norm.", "cross", "embedding")
    assert all(any(mark in name for mark in trained_parts) for name in moved), moved
    assert {name.split(".")[0] for name in moved} >= {"story", "prompts", "source_norm", "decoder"}


@torch.no_grad()
def test_prompt_tuning_equals_pefts() -> None:
    """Prompt rows in front of the embeddings, in one pass, as peft's prompt tuning puts them there."""
    model, [row] = fitted(story=False), rows([1])
    begin, stack = row.index(model.begin), model.decoder
    target = torch.tensor([[0, *row[begin + 1 :]]])
    x = torch.cat([model.prompts(1), stack.embed(target, torch.arange(target.shape[1])[None])], 1)  # type: ignore
    positions = torch.arange(-5, target.shape[1])[None]
    source = model.memory(torch.tensor([row[:begin]]), torch.tensor([begin]))
    for index in range(len(stack.blocks)):
        x = stack.run_block(index, x, Layout(positions, source=(source, torch.tensor([begin]))))
    torch.testing.assert_close(model(torch.tensor([row])).logits[:, begin:, :-1],
                               model.lm.scores(stack.finish(x, Layout(positions))[:, 5:], positions[:, 5:]))


def test_cross_attention_is_inserted_once() -> None:
    model = base()
    insert_cross(model.stack, [0])
    with pytest.raises(SegueError, match="no layer 0 without"):
        insert_cross(model.stack, [0])
    with pytest.raises(SegueError, match="no layer 7"):
        insert_cross(model.stack, [7])


def test_picture_codes_round_trip() -> None:
    """Pictures of twelve sorts of patches: decoded codes are encoded to the same codes."""
    torch.manual_seed(0)
    patches, model = torch.rand(12, 3, 4, 4), ImageTokenizer(16, 32, 8)
    frames = patches[torch.randint(12, (100, 6, 6))].permute(0, 3, 1, 4, 2, 5).reshape(100, 3, 24, 24)

    def batch(step: int) -> Batch:
        which = torch.randint(len(frames), (32,), generator=torch.Generator().manual_seed(step))
        return Batch(frames[which], torch.zeros(32, 1, dtype=torch.long))

    learn(model, batch, 150, objective=CodedReconstruction(), rate=1e-2, cooldown=0.5)
    model.eval()
    codes = model.encode(frames)
    decoded = model.decode(codes)
    assert codes.shape == (100, 36) and decoded.shape == frames.shape
    assert (model.encode(decoded) == codes).float().mean() > 0.95
    assert (decoded - frames).square().mean() < frames.var((0, 2, 3)).mean() / 3
    torch.testing.assert_close(model(frames).picture.clamp(0, 1), decoded)
    with pytest.raises(SegueError, match="sides divisible by 4"):
        model.encode(frames[:, :, :23])


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    frames = stories.draw(count, seed).pictures.reshape(-1, stories.SIDE, stories.SIDE, 3)
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255


def test_a_classifier_of_frames_learns() -> None:
    torch.manual_seed(0)
    story_data = stories.draw(60, 0)
    labels = np.concatenate([story_data.present.reshape(-1, 11), np.repeat(story_data.place, 5)[:, None]],
                            1).astype(np.int64)
    frames, model = pictures(60), FrameClassifier(11, 6, stories.SIDE, 16)
    all_frames = Batch(frames, torch.from_numpy(labels))
    learn(model, lambda step: all_frames.rows(slice(step % 5 * 60, step % 5 * 60 + 60)), 150, objective=FrameLabels())
    object_scores, places = model(frames)
    assert (places.argmax(1) == all_frames.targets[:, -1]).float().mean() > 0.7
    assert ((object_scores > 0) == all_frames.targets[:, :-1].bool()).float().mean() > 0.85


def test_frame_metrics_equal_hand_counts() -> None:
    detected, meant = np.array([[1, 0, 1], [0, 1, 0]], bool), np.array([[1, 0, 0], [0, 1, 0]], bool)
    assert frame_metrics(detected, meant) == {"F1": 4 / 5, "exact": 0.5}
    assert frame_metrics(meant[:0], meant[:0]) == {"F1": 0, "exact": 0}


def test_verdicts_by_the_rule() -> None:
    """The paper's outcome, and each other outcome, on synthetic tables."""
    row = {"scarf": 0.9, "pronoun F1": 0.9, "FID": 1.0, "F1 of 1": 0.95, "F1 of 2": 0.9, "F1 of 3": 0.8}
    confirmed_rows = {"full": row, "full, sources shuffled": row | {"scarf": 0.2},
                      "full, no source": row | {"scarf": 0.3},
                      "full, no story token": row | {"pronoun F1": 0.6}, "prompts": row | {"FID": 2.0},
                      "real frames": row | {"PSNR": 30.0, "exact": 0.99}}

    def verdict(model: str = "full", **changed: float) -> str:
        table = [{"model": name, **values, **(changed if name == model else {})}
                 for name, values in confirmed_rows.items()]
        return CLAIM.judge(table)[0]

    assert verdict() == "confirmed"
    assert verdict("real frames", PSNR=26.0) == verdict("real frames", exact=0.97) == "inconclusive"
    assert verdict("full, no source", scarf=0.7) == verdict("full, sources shuffled", scarf=0.3) == "refuted"
    assert verdict("full, no story token", **{"pronoun F1": 0.85}) == "refuted"
    assert verdict("prompts", FID=0.5) == verdict(**{"F1 of 3": 0.96}) == "inconclusive"


def test_synthetic_stories_are_consistent() -> None:
    story_data = stories.draw(200, 5)
    assert (story_data.pictures == stories.draw(200, 5).pictures).all()
    present_counts = story_data.present.sum(2)
    cast = story_data.scarf >= 0
    assert ((present_counts >= 1) & (present_counts <= 3)).all() and (story_data.present[:, 0] == cast).all()
    passing = (story_data.present & ~cast[:, None]).sum(2)
    assert (passing <= 1).all() and 0.4 < passing[:, 1:].mean() < 0.6
    assert 0.3 < passing[story_data.pronoun].mean() < 0.7, "a pronoun may be of somebody whom only a caption named"
    assert not story_data.pronoun[:, 0].any() and (present_counts[story_data.pronoun] == 1).all()
    before = np.roll(story_data.present, 1, 1)
    assert (story_data.present == before).all(2)[story_data.pronoun].all(), "a pronoun is of the one that was there"
    assert 0.4 < (story_data.words[:, 0] >= stories.IDS["forest"]).any(1).mean() < 0.6
    assert not (story_data.words[:, 1:] >= stories.IDS["forest"]).any()
    detected = stories.detect_scarves(story_data.pictures.reshape(-1, 24, 24, 3)).reshape(200, 5, -1)
    assert (detected == story_data.scarf[:, None])[story_data.present & cast[:, None]].all()
    assert story_data.present[..., stories.SEEN :].sum() == 0
    unseen_data = stories.draw(20, 5, unseen=True)
    assert unseen_data.present[..., stories.SEEN :].any((1, 2)).all() and unseen_data.words.max() >= len(stories.WORDS)
