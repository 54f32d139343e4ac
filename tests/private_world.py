"""A client of a private run as its parts, for measuring what one step of it releases."""

from dataclasses import replace
from functools import partial

import torch

from fedsb import RunConfig
from fedsb.config.method import method_of
from fedsb.federation.dropout import without_dropout
from fedsb.federation.local_model import load_round
from fedsb.federation.private_training import train_privately
from fedsb.federation.start.from_gradients import Calibration
from fedsb.federation.start.initialize import start_factors
from fedsb.privacy.keystream import Keystream
from fedsb.privacy.noise import NoiseSource
from fedsb.privacy.per_example import per_example_gradients
from fedsb.privacy.plan import ExamplePlan
from fedsb.runner.arguments import local_training, start_of
from fedsb.runner.prepare_data import batches_of, prepare_data
from fedsb.runner.prepare_model import local_model_of, prepare_base


class PrivateWorld:
    """A tiny model with an adapter at the values of some later round, and the rows of the config."""

    def __init__(self, config):
        self.config = RunConfig.from_dict(config)
        self.data = prepare_data(self.config)
        self.config = self.data.settled(self.config)
        base = prepare_base(self.config, self.data)
        calibration = Calibration({}, [], batches_of(self.data, base.device), self.data.task.losses)
        method, start = method_of(self.config), start_of(self.config, self.data.parts)
        factors = start_factors(
            base.model, base.targets, {}, method, start, calibration, num_clients=1
        ).factors
        self.local_model = local_model_of(self.config, self.data, base, factors)
        exchange, draw = self.local_model.exchange, torch.Generator().manual_seed(3)
        shared = exchange.down(exchange.rank)
        self.shared = {n: torch.randn(shape, generator=draw) / 4 for n, shape in shared.entries}

    def encode(self, row):
        return self.data.task.encode([row], "a row")[0]

    def before(self):
        """The trained numbers as the first round's broadcast brings them."""
        local_model = self.local_model
        placed = load_round(local_model, self.shared, local_model.exchange.whole, round_number=1, seed=0)
        return {name: parameter.detach().clone() for name, parameter in placed.items()}

    def directions(self, rows):
        """Each row's gradient at that state, of length 1."""
        local_model, task = self.local_model, self.data.task
        exchange = local_model.exchange
        parameters = load_round(local_model, self.shared, exchange.whole, round_number=1, seed=0)
        with without_dropout(local_model.model), per_example_gradients(local_model.model):
            batch = local_model.collate(task.encode(rows, "rows"))
            local_model.losses(local_model.model, batch).sum().backward()
            names = [name for name, _ in exchange.up(1, exchange.whole).entries]
            found = torch.cat([parameters[name].grad_sample.flatten(1) for name in names], 1).double()
        return (found / found.norm(dim=1, keepdim=True)).numpy()

    def clipped_sum(self, examples, clip_norm, *, number=1, batch_size=512, **training):
        """The sum of clipped gradients that a noiseless step over all these examples releases."""
        local_model, size = self.local_model, len(examples)
        place_ = partial(load_round, local_model, self.shared, local_model.exchange.whole)
        parameters = place_(round_number=number, seed=0)
        before = {name: p.detach().double() for name, p in parameters.items()}
        how = replace(local_training(self.config), optimizer="sgd", learning_rate=1.0, batch_size=batch_size)
        owners = len({e["owner"] for e in examples}) if "owner" in examples[0] else None
        plan = ExamplePlan(
            num_examples=size, expected_batch_size=size, steps_per_round=1, rounds=1, clip_norm=clip_norm,
            owners=owners,
        )  # fmt: skip
        train_privately(
            local_model,
            parameters,
            examples,
            replace(how, schedule="constant", rounds=1, **training),
            plan,
            noise=NoiseSource(),
            coins=Keystream.fresh(),
            masks={},
            round_number=number,
            client=0,
        )
        return plan.expected_units * torch.cat(
            [(before[n] - p.detach().double()).flatten() for n, p in parameters.items()]
        )
