from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import assert_same_run, history, keep_states, restored, resume, train
from shared_batches import Case, Threads, assert_equal_steps, averaged, objective_cases
from torch import Tensor

import ercfusion
from ercfusion._core.errors import ConfigError
from ercfusion._core.schemas.reading import check
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.config.compose import Composer
from ercfusion.config.fields import setting
from ercfusion.config.schema import run_config
from ercfusion.config.settings import fields_in, flat, section_from, section_of, section_to
from ercfusion.config.terms import TERMS, Term, term
from ercfusion.losses import (
    adaptive_triplet_loss,
    chosen_label_loss,
    cooccurrence_penalties,
    focal_loss,
    kl_divergence,
    penalty_factors,
    smooth_raters,
    soft_cross_entropy,
    supervised_contrastive,
    triplet_loss,
    variance_loss,
)
from ercfusion.losses.reference import class_balanced_weights_reference
from ercfusion.search.config import compose_sweep
from ercfusion.search.space import ends
from ercfusion.tasks.heads import class_weights
from ercfusion.tasks.objective import (
    Objective,
    build_objective,
    check_objective,
)
from ercfusion.tasks.recognizer import Recognized, Recognizer
from ercfusion.testing import make_task, random_batch, random_store, take

TASK = make_task()


@pytest.fixture
def recognizer() -> Recognizer:
    torch.manual_seed(0)
    return Recognizer("concat", random_store(tasks=[TASK]).inputs, TASK, {"hidden": 8}, unimodal=True).eval()


@pytest.fixture
def batch() -> ConversationBatch:
    return random_batch(tasks=[TASK], labelled=0.6, absent=0.2)


def recognize(recognizer: Recognizer, batch: ConversationBatch) -> Recognized:
    recognized = recognizer(batch)
    recognized.encoded.losses = {"smooth": torch.tensor(3.0), "sparse": torch.tensor(5.0)}
    return recognized


def quotient(recognizer: Recognizer, logits: Tensor, batch: ConversationBatch, weights: Tensor | None = None) -> Tensor:
    total, count = recognizer.head.loss(logits, batch.targets["emotion"], weights)
    return total / count


def test_terms(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized = recognize(recognizer, batch)
    total, terms = Objective({})(recognizer, recognized, batch)
    assert list(terms) == ["task", "unimodal", "smooth", "sparse"]
    torch.testing.assert_close(terms["task"], quotient(recognizer, recognized.logits, batch))
    each = [quotient(recognizer, logits, batch) for logits in recognized.unimodal.values()]
    assert len(each) == 3
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    assert (terms["smooth"], terms["sparse"]) == (3.0, 5.0)
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())


def test_weights(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized = recognize(recognizer, batch)
    total, terms = Objective({"unimodal": 0.5, "smooth": 0.0, "sparse": 10.0})(recognizer, recognized, batch)
    torch.testing.assert_close(total, terms["task"] + 0.5 * terms["unimodal"] + 50.0)
    assert terms["smooth"] == 3.0  # what is logged is not weighted
    assert terms["sparse"] == 5.0


def test_class_weights(recognizer: Recognizer, batch: ConversationBatch) -> None:
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5])
    objective = Objective({}, weights)
    recognized = recognizer(batch)
    _, terms = objective(recognizer, recognized, batch)
    torch.testing.assert_close(terms["task"], quotient(recognizer, recognized.logits, batch, weights))
    each = [quotient(recognizer, logits, batch, weights) for logits in recognized.unimodal.values()]
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    assert not objective.state_dict()  # from the data, not part of a model
    assert dict(objective.named_buffers()).keys() == {"class_weights"}


@pytest.mark.parametrize("policy", [None, "mean", "skip"])
def test_heads_of_skipped_modalities_have_no_loss(policy: str | None, batch: ConversationBatch) -> None:
    inputs = random_store(tasks=[TASK]).inputs
    recognizer = Recognizer("concat", inputs, TASK, {"hidden": 8}, unimodal=True, policy=policy).eval()
    recognized = recognizer(batch)
    targets, each = batch.targets["emotion"], []
    for column, logits in enumerate(recognized.unimodal.values()):
        counted = targets.valid & batch.present[:, column] if policy == "skip" else targets.valid
        assert 0 < int(counted.sum()) < len(counted)
        total, count = recognizer.head.loss(logits, replace(targets, valid=counted), None)
        each.append(total / count)
    _, terms = Objective({})(recognizer, recognized, batch)
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    nothing = batch.hide(torch.ones_like(batch.available))
    assert Objective({})(recognizer, recognizer(nothing), nothing)[0].isfinite()


def test_unknown_term(recognizer: Recognizer, batch: ConversationBatch) -> None:
    with pytest.raises(ConfigError, match=r"objective.weights: no term 'smoth'. Did you mean 'smooth'\?"):
        Objective({"smoth": 1.0})(recognizer, recognize(recognizer, batch), batch)


def test_a_weight_for_unimodal_is_no_error_without_unimodal_heads(batch: ConversationBatch) -> None:
    torch.manual_seed(0)
    plain = Recognizer("concat", random_store(tasks=[TASK]).inputs, TASK)
    _, terms = Objective({"unimodal": 0.3})(plain, plain(batch), batch)
    assert list(terms) == ["task"]


def test_no_labelled_utterance_gives_zero(recognizer: Recognizer, batch: ConversationBatch) -> None:
    target = batch.targets["emotion"]
    unlabelled = replace(batch, targets={"emotion": replace(target, valid=torch.zeros_like(target.valid))})
    total, _ = Objective({})(recognizer, recognizer(unlabelled), unlabelled)
    total.backward()
    assert float(total.detach()) == 0
    assert all((parameter.grad == 0).all() for parameter in recognizer.parameters())


# The task's loss


def built(recognizer: Recognizer, **settings: Any) -> Objective:
    """An objective from settings beside the defaults, with a training split of 200 utterances."""
    targets = random_store((90, 110), tasks=[recognizer.task], seed=5).targets["emotion"]
    weights = {"task": 1.0, **settings.pop("weights", {})}
    balance = class_weights(targets, recognizer.task, settings.get("class_weights", "none"))
    return build_objective(section_of("objective", {"weights": weights, **settings}), recognizer, targets, balance)


def test_the_default_is_what_it_was_to_the_last_bit(recognizer: Recognizer, batch: ConversationBatch) -> None:
    targets = random_store((90, 110), tasks=[TASK], seed=5).targets["emotion"]
    recognized = recognizer(batch)
    for scheme in ("none", "balanced", "effective"):
        weights = class_weights(targets, TASK, scheme)
        total, terms = built(recognizer, class_weights=scheme)(recognizer, recognized, batch)
        assert torch.equal(terms["task"], quotient(recognizer, recognized.logits, batch, weights))
        assert torch.equal(total, Objective({"task": 1.0, "unimodal": 0.0}, weights)(recognizer, recognized, batch)[0])
        assert list(terms) == ["task", "unimodal"]


def test_focal(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized, target = recognizer(batch), batch.targets["emotion"]
    _, terms = built(recognizer, loss="focal", focal={"gamma": 3.0})(recognizer, recognized, batch)

    def expected(logits: Tensor, gamma: float) -> Tensor:
        total, count = focal_loss(logits, target.value, gamma=gamma, valid=target.valid)
        return total / count

    torch.testing.assert_close(terms["task"], expected(recognized.logits, 3.0))
    each = [expected(logits, 3.0) for logits in recognized.unimodal.values()]
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    _, terms = built(recognizer, loss="focal")(recognizer, recognized, batch)
    torch.testing.assert_close(terms["task"], expected(recognized.logits, 2.0))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_class_balanced(gamma: float, recognizer: Recognizer, batch: ConversationBatch) -> None:
    settings = {"beta": 0.99, "gamma": gamma}
    objective = built(recognizer, loss="class_balanced", class_balanced=settings)
    targets = random_store((90, 110), tasks=[TASK], seed=5).targets["emotion"]
    counts = [float((targets.value == label).sum()) for label in range(4)]
    weights = torch.tensor(class_balanced_weights_reference(counts, 0.99))
    torch.testing.assert_close(objective.class_weights, weights)
    recognized, target = recognizer(batch), batch.targets["emotion"]
    total, count = focal_loss(recognized.logits, target.value, gamma=gamma, weights=weights, valid=target.valid)
    torch.testing.assert_close(objective(recognizer, recognized, batch)[1]["task"], total / count)


# Distributions and votes

DISTRIBUTION = make_task("distribution")


@pytest.fixture
def voted() -> Recognizer:
    torch.manual_seed(0)
    store = random_store(tasks=[DISTRIBUTION])
    return Recognizer("concat", store.inputs, DISTRIBUTION, {"hidden": 8}, label_smoothing=0.05, unimodal=True).eval()


def training_votes(task: Any = DISTRIBUTION) -> TaskTargets:
    return random_store((90, 110), tasks=[task], seed=5).targets[task.name]


@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced", "kl", "chosen_labels"])
@pytest.mark.parametrize("penalty", [False, True])
def test_losses_of_distributions(loss: str, penalty: bool, voted: Recognizer) -> None:
    batch, targets = random_batch(tasks=[DISTRIBUTION], labelled=0.6), training_votes()
    settings = {"class_balanced": {"beta": None}} if loss == "class_balanced" else {}
    section = section_of("objective", {"loss": loss, "penalty": penalty, "weights": {"unimodal": 1.0}, **settings})
    objective = build_objective(section, voted, targets)
    recognized, own = voted(batch), batch.targets["emotion"]
    weights = None
    if loss == "class_balanced":
        # beta = (N - 1) / N, counts of labels above 1/C.
        counts = [float((targets.value[:, label] > 0.25 + 1e-6).sum()) for label in range(4)]
        number = len(targets.value)
        weights = torch.tensor(class_balanced_weights_reference(counts, (number - 1) / number))
        torch.testing.assert_close(objective.class_weights, weights)
    functions = {"kl": kl_divergence, "chosen_labels": chosen_label_loss}
    target = smooth_raters(own.value, 0.05)

    def expected(logits: Tensor) -> Tensor:
        factors = None
        if penalty:
            assert targets.votes is not None
            factors = penalty_factors(cooccurrence_penalties(targets.votes > 0), target, logits.softmax(-1))
        function = functions.get(loss, soft_cross_entropy)
        total, count = function(logits, target, weights=weights, factors=factors, valid=own.valid)
        return total / count

    _, terms = objective(voted, recognized, batch)
    torch.testing.assert_close(terms["task"], expected(recognized.logits))
    each = [expected(logits) for logits in recognized.unimodal.values()]
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    assert ("penalties" in objective.state_dict()) == penalty


def test_without_penalty_the_loss_has_no_factor(voted: Recognizer) -> None:
    batch = random_batch(tasks=[DISTRIBUTION], labelled=0.6)
    losses = [
        build_objective(section_of("objective", {"penalty": penalty}), voted, training_votes())(
            voted, voted(batch), batch
        )[0]
        for penalty in (False, True)
    ]
    assert losses[1] < losses[0]


def test_votes_of_the_training_split_give_the_penalties() -> None:
    votes = torch.tensor([[3.0, 2, 0, 0], [0, 1, 1, 0], [5, 0, 0, 0], [0, 0, 4, 1]])
    valid = torch.tensor([True, True, True, False])  # the pair of the last row does not count
    expected = cooccurrence_penalties(votes[:3] > 0).float()
    store = random_store(tasks=[TASK])
    for kind in ("single_label", "multi_label", "distribution"):
        task = make_task(kind)
        model = Recognizer("concat", store.inputs, task, {"hidden": 8})
        value = torch.zeros(4, dtype=torch.long) if kind == "single_label" else torch.zeros(4, 4)
        built_one = build_objective(section_of("objective", {"penalty": True}), model, TaskTargets(value, valid, votes))
        torch.testing.assert_close(built_one.penalties, expected)
        batch = random_batch(tasks=[task], labelled=0.6)
        total, _ = built_one(model, model(batch), batch)
        total.backward()
        assert total.isfinite()
    # Without votes: from the shares or the sets.
    task = make_task("multi_label")
    model = Recognizer("concat", store.inputs, task, {"hidden": 8})
    sets = TaskTargets((votes > 0).float(), valid)
    found = build_objective(section_of("objective", {"penalty": True}), model, sets).penalties
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("single_label", {"penalty": True}, "has no votes for the single_label task 'emotion'"),
        ("regression", {"penalty": True}, "is for distribution and intensity and multi_label and single_label tasks"),
        ("distribution", {"loss": "class_balanced", "class_balanced": {"gamma": 2.0}}, "gamma is for single-label"),
    ],
)
def test_settings_of_votes_that_do_not_fit(kind: str, settings: dict[str, Any], message: str) -> None:
    task = make_task(kind)
    store = random_store(tasks=[task])
    model = Recognizer("concat", store.inputs, task, {"hidden": 8})
    with pytest.raises(ConfigError, match=message):
        build_objective(section_of("objective", settings), model, store.targets["emotion"])


# Representation terms


def test_terms_of_hidden_vectors(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized, target = recognizer(batch), batch.targets["emotion"]
    weights = {"supcon": 0.5, "triplet": 2.0, "variance": 0.1, "covariance": 0.0}
    settings = {"supcon": {"temperature": 0.3, "include_lonely": True}, "triplet": {"mining": "all", "margin": 0.4}}
    objective = built(recognizer, weights={**weights, "unimodal": 0.0}, **settings, variance={"std": 2.0})
    total, terms = objective(recognizer, recognized, batch)
    assert list(terms) == ["task", "unimodal", "supcon", "triplet", "variance"]
    hidden, valid = recognized.encoded.hidden, target.valid
    pairs = {
        "supcon": supervised_contrastive(hidden, target.value, temperature=0.3, include_lonely=True, valid=valid),
        "triplet": triplet_loss(hidden, target.value, mining="all", margin=0.4, valid=valid),
        "variance": variance_loss(hidden, target=2.0, valid=valid),
    }
    for name, (value, count) in pairs.items():
        assert value > 0
        torch.testing.assert_close(terms[name], value / count)
    torch.testing.assert_close(total, terms["task"] + sum(weights[name] * terms[name] for name in pairs))


def test_terms_of_modalities_leave_absent_ones_out(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized, target = recognizer(batch), batch.targets["emotion"]
    assert not batch.present.all()

    def of(name: str) -> Tensor:
        there = target.valid & batch.present[:, batch.column(name)]
        total, count = adaptive_triplet_loss(recognized.encoded.modalities[name], target.value, valid=there)
        return total / count

    each = torch.stack([of(name) for name in batch.modalities]).sum()
    hidden, count = adaptive_triplet_loss(recognized.encoded.hidden, target.value, valid=target.valid)
    for representations, expected in (("modalities", each), ("both", each + hidden / count)):
        settings = {"triplet": {"of": representations, "adaptive": True}}
        _, terms = built(recognizer, weights={"triplet": 1.0}, **settings)(recognizer, recognized, batch)
        torch.testing.assert_close(terms["triplet"], expected)


def test_a_projection_is_trained_and_belongs_to_the_objective(recognizer: Recognizer, batch: ConversationBatch) -> None:
    before = set(recognizer.state_dict())
    settings = {"projection": 3, "of": "both"}
    objective = built(recognizer, weights={"supcon": 1.0}, supcon=settings)
    assert set(recognizer.state_dict()) == before
    shapes = {name: tuple(value.shape) for name, value in objective.state_dict().items()}
    assert shapes["terms.supcon.projections.hidden.2.weight"] == (3, recognizer.architecture.hidden_size)
    assert len(shapes) == 4 * 4
    for part in (batch, take(batch, [0])):  # the second has one utterance, and no pair
        total, _ = objective(recognizer, recognizer(part), part)
        gradients = torch.autograd.grad(total, list(objective.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[0].abs().max() > 0) == (part is batch)


def test_a_queue_remembers_training_batches(recognizer: Recognizer, batch: ConversationBatch) -> None:
    objective = built(recognizer, weights={"supcon": 1.0}, supcon={"queue": 500})
    number = int(batch.targets["emotion"].valid.sum())
    recognized = recognizer(batch)
    counts = []
    for _ in range(2):
        objective.train()(recognizer, recognized, batch)
        counts.append(int(objective.state_dict()["terms.supcon.queues.hidden.filled"]))
    assert counts == [number, 2 * number]
    _, terms = objective.eval()(recognizer, recognized, batch)
    assert int(objective.state_dict()["terms.supcon.queues.hidden.filled"]) == 2 * number
    plain = built(recognizer, weights={"supcon": 1.0})(recognizer, recognized, batch)[1]
    assert terms["supcon"] > plain["supcon"]  # more keys, larger denominators


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_term_is_finite_under_autocast(
    dtype: torch.dtype, recognizer: Recognizer, batch: ConversationBatch
) -> None:
    names = [name for name in TERMS if name != "rank"]
    settings: dict[str, Any] = {name: {"projection": 4, "of": "both"} for name in names}
    objective = built(recognizer, weights=dict.fromkeys(names, 0.1), loss="focal", **settings)
    with torch.autocast("cpu", dtype=dtype):
        total, terms = objective(recognizer, recognizer(batch), batch)
    assert set(names) < set(terms)
    assert all(value.isfinite() for value in terms.values())
    gradients = torch.autograd.grad(total, [*recognizer.parameters(), *objective.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", ["multi_label", "distribution", "regression"])
def test_terms_and_losses_that_do_not_fit_the_task(kind: str) -> None:
    task = make_task(kind)
    other = Recognizer("concat", random_store(tasks=[task]).inputs, task, {"hidden": 8})
    for name in ("supcon", "inter_class", "triplet"):
        with pytest.raises(
            ConfigError, match=rf"objective.weights.{name} is for single_label tasks; 'emotion' is {kind}"
        ):
            built(other, weights={name: 0.1})
        built(other, weights={name: 0.0})
    for loss in ("focal", "class_balanced", "kl", "chosen_labels"):
        if loss not in task.rules.losses:
            fits = {"focal": "single_label", "class_balanced": "distribution and single_label"}
            expected = rf"objective.loss={loss} is for {fits.get(loss, 'distribution')} tasks; 'emotion' is {kind}"
            with pytest.raises(ConfigError, match=expected):
                built(other, loss=loss)
    batch = random_batch(tasks=[task], labelled=0.6)
    names = ["variance", "covariance", *(["rank"] if kind == "regression" else [])]
    total, terms = built(other, weights=dict.fromkeys(names, 0.1))(other, other(batch), batch)
    assert list(terms) == ["task", *names]
    assert total.isfinite()


def test_rank_is_for_regression(recognizer: Recognizer) -> None:
    with pytest.raises(
        ConfigError, match=r"objective\.weights\.rank is for regression tasks; 'emotion' is single_label"
    ):
        built(recognizer, weights={"rank": 0.1})


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"loss": "focl"}, "must be one of cross_entropy, focal, class_balanced, kl, chosen_labels; found 'focl'"),
    ({"loss": "focal", "focal": {"gama": 1.0}}, "objective.focal has no setting 'gama'. Did you mean 'gamma'"),
    ({"loss": "focal", "focal": {"gamma": -1.0}}, "objective.focal.gamma must be at least 0, found -1.0"),
    ({"loss": "class_balanced", "class_balanced": {"beta": 1.0}}, "beta must be at least 0 and below 1, found 1.0"),
    ({"loss": "class_balanced", "class_weights": "balanced"}, "has its own class weights"),
    ({"supcn": {}}, "objective has no setting 'supcn'. Did you mean 'supcon'"),
    ({"supcon": {"tmperature": 1.0}}, "objective.supcon has no setting 'tmperature'. Did you mean 'temperature'"),
    ({"supcon": {"temperature": 0.0}}, "objective.supcon.temperature must be above 0, found 0.0"),
    ({"supcon": {"of": "all"}}, "objective.supcon.of must be one of hidden, modalities, both; found 'all'"),
    ({"supcon": {"projection": -1}}, "objective.supcon.projection must be from 0 to 1000000, found -1"),
    ({"triplet": {"queue": 5}}, "objective.triplet has no setting 'queue'"),
    ({"triplet": {"mining": "semi"}}, "objective.triplet.mining must be one of hard, all, active; found 'semi'"),
    ({"triplet": {"literal": True}}, "objective.triplet: literal=true and hinge=false go with adaptive=true only"),
    ({"variance": {"std": 0.0}}, "objective.variance.std must be above 0, found 0.0"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_in_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_objective(section_of("objective", settings))
    assert message in str(caught.value)


def test_a_term_of_modalities_needs_them() -> None:
    plain = Recognizer("cogmen", random_store(tasks=[TASK]).inputs, TASK)
    assert not plain(random_batch(tasks=[TASK])).encoded.modalities
    with pytest.raises(ConfigError, match=r"objective.supcon.of=modalities: the architecture .* no representation"):
        built(plain, weights={"supcon": 0.1}, supcon={"of": "modalities"})


def test_an_auxiliary_loss_of_the_name_of_a_term(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized = recognizer(batch)
    recognized.encoded.losses = {"variance": torch.tensor(3.0)}
    assert Objective({})(recognizer, recognized, batch)[1]["variance"] == 3.0  # the architecture's own
    with pytest.raises(ConfigError, match="the auxiliary loss 'variance' of the architecture has the name of a term"):
        built(recognizer, weights={"variance": 0.1})(recognizer, recognized, batch)


OBJECTIVES = objective_cases()


@pytest.mark.parametrize("case", OBJECTIVES, ids=[case.name for case in OBJECTIVES])
def test_two_processes_have_the_loss_and_the_gradient_of_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term and every loss, with unequal shares, and with a batch that leaves a process without a conversation."""
    expected = case.steps()
    found = Threads(monkeypatch, 2).run(lambda rank: case.steps(rank, 2))
    assert_equal_steps(case, averaged(found), expected)


def test_a_number_as_auxiliary_loss_is_for_one_process(
    recognizer: Recognizer, batch: ConversationBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognized = recognizer(batch)
    recognized.encoded.losses = {"apart": torch.tensor(3.0)}
    assert Objective({})(recognizer, recognized, batch)[1]["apart"] == 3.0
    with pytest.raises(
        ConfigError, match=r"auxiliary loss 'apart' of the architecture covers only this process's part .*BatchLoss"
    ):
        Threads(monkeypatch, 2).run(lambda rank: Objective({})(recognizer, recognized, batch))


# Configuration

CHOICES = sorted((Path(ercfusion.__file__).parent / "conf" / "objective").glob("*.yaml"))


def test_presets_say_only_what_differs() -> None:
    composer = Composer("train")
    default = composer.compose(["model=concat"])["objective"]
    assert default == section_to(section_of("objective", {}))
    for path in CHOICES:
        found = composer.compose(["model=concat", f"objective={path.stem}"])["objective"]
        check_objective(section_from("objective", found))
        own = yaml.safe_load(path.read_text())
        assert {key: value for key, value in flat(found).items() if flat(default).get(key) != value} == flat(own)
        if path.stem not in ("metric_learning", "hybrid"):
            assert found["loss"] == path.stem
    for name in TERMS:
        found = composer.compose(["model=concat", f"objective={name}"])["objective"]
        assert flat(found) == {**flat(default), f"weights.{name}": 0.1}


def test_defaults_of_a_term_are_those_of_its_function() -> None:
    for name, section in TERMS.items():
        for parameter in inspect.signature(inspect.unwrap(section.load())).parameters.values():
            if parameter.default is not parameter.empty and hasattr(section, parameter.name):
                assert getattr(section(), parameter.name) == parameter.default, f"{name}.{parameter.name}"


def own_term(vectors: Tensor, target: Tensor, *, power: float) -> tuple[Tensor, Tensor]:
    return vectors.abs().pow(power).sum(), torch.tensor(float(max(len(vectors), 1)))


def test_a_term_of_ones_own_is_one_class(recognizer: Recognizer, batch: ConversationBatch) -> None:
    """Its section, its checks and its weight need nothing else."""
    with restored():

        @term("small")
        @dataclass(frozen=True)
        class Small(Term):
            """Small vectors."""

            function = own_term
            power: float = setting(2.0, "of the absolute values", low=1)

        composed = Composer().compose(["model=concat", "objective.small.power=3", "objective.weights.small=0.5"])
        assert composed["objective"]["small"] == {"of": "hidden", "projection": 0, "power": 3}
        check(composed, run_config(), "config.json")
        with pytest.raises(ConfigError, match=r"objective\.small\.power must be at least 1, found 0.5"):
            built(recognizer, small={"power": 0.5})
        objective = built(recognizer, weights={"small": 0.5})
        total, terms = objective(recognizer, recognizer(batch), batch)
        assert terms["small"] > 0
        torch.testing.assert_close(total, terms["task"] + 0.5 * terms["small"])
        assert "objective.small.power" in fields_in("objective")


def test_yaml_reads_every_name_as_a_text() -> None:
    """`on` and `off` would be true and false."""
    for path in CHOICES:
        loaded = yaml.safe_load(path.read_text())
        assert all(isinstance(key, str) for value in loaded.values() if isinstance(value, dict) for key in value)


def test_a_preset_keeps_its_own_weights() -> None:
    found = Composer("train").compose(
        ["model=bclstm_poria2017", "objective=supcon", "objective.supcon.temperature=0.2"]
    )
    assert found["objective"]["weights"] == {"task": 1.0, "unimodal": 1.0, "supcon": 0.1}
    assert found["objective"]["supcon"]["temperature"] == 0.2


def test_a_sweep_reaches_weights_and_settings() -> None:
    ranges = ["objective.weights.supcon=interval(0.01,1)", "objective.supcon.temperature=interval(0.05,0.5)"]
    config = compose_sweep(Composer("sweep"), [], ["model=concat", *ranges])
    assert ends(config["space"]["objective.weights.supcon"]) == [0.01, 1.0]
    assert ends(config["space"]["objective.supcon.temperature"]) == [0.05, 0.5]


def test_a_sweep_may_add_a_weight() -> None:
    config = compose_sweep(Composer("sweep"), [], ["model=concat", "objective.weights.supcon=interval(0.01,1)"])
    assert ends(config["space"]["objective.weights.supcon"]) == [0.01, 1.0]
    assert config["objective"]["weights"]["supcon"] == 0  # off where the search begins
    with pytest.raises(ConfigError, match=r"there is no setting 'objective\.nothing'"):
        compose_sweep(Composer("sweep"), [], ["model=concat", "objective.nothing=interval(0.01,1)"])


@pytest.mark.usefixtures("no_pictures")
def test_a_run_with_every_part_resumes_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        *("model=concat", "objective.loss=focal", "objective.focal.gamma=1.5"),
        *("objective.weights.supcon=0.5", "objective.supcon.projection=6", "objective.supcon.queue=20"),
        *("objective.weights.triplet=0.2", "objective.triplet.adaptive=true", "objective.triplet.of=modalities"),
        *("objective.weights.variance=0.1", "training.max_epochs=2", "training.patience=0"),
        "training.modality_dropout=0.3",
    ]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *arguments)
    rows = history(tmp_path / "whole")
    assert {"train/supcon", "train/triplet", "train/variance", "train/task"} < set(rows[0])
    assert "train/rank" not in rows[0]
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("1", "whole")]
    name = "objective.terms.supcon.projections.hidden.0.weight"
    assert not torch.equal(*(state["state_dict"][name] for state in states))  # the optimiser sees it
    assert int(states[0]["state_dict"]["objective.terms.supcon.queues.hidden.filled"]) == 20
    resume(tmp_path / "1")
    assert_same_run(tmp_path / "1", tmp_path / "whole")


@pytest.mark.usefixtures("no_pictures")
def test_the_penalties_are_stored_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["data.protocol=multilabel", "objective.penalty=true", "training.max_epochs=2", "training.patience=0"]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        train(tmp_path / "whole", *arguments)
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("1", "whole")]
    first, second = (state["state_dict"]["objective.penalties"] for state in states)
    assert torch.equal(first, second)
    # Labels of the corpus occur together by design.
    assert bool((first < 1).any())
    assert torch.equal(first.diagonal(), torch.ones(len(first)))
    resume(tmp_path / "1")
    assert_same_run(tmp_path / "1", tmp_path / "whole")
