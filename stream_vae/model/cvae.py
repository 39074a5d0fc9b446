"""The convolutional VAE of Huijse et al. 2018 and what may be asked of it, on whichever backend Keras runs.

The paper's model is `CVAE(decoder_variance=1.0)`: the bound with unit variance. Options: a variance that is fitted
(sigma-VAE), a KL weight and its schedule, a constrained objective (GECO), the importance-weighted bound, a learned
prior (VampPrior), a likelihood with each pixel's own noise, and a term for those stamps that have labels.

References
----------
Huijse, Astorga, Estevez & Pignata 2018, ESANN, "Latent representations of transient candidates from an astronomical
image difference pipeline using Variational Autoencoders"; Rezende & Viola 2018 (GECO, algorithm 1); Kingma et al. 2014
(semi-supervised VAEs); the references of `losses`, `schedules` and `priors`.
"""

from typing import Any

from stream_vae.model import losses
from stream_vae.model.autoencoder import Autoencoder, stamp_of
from stream_vae.model.backend import keras
from stream_vae.model.losses import Tensor
from stream_vae.model.priors import StandardNormal, VampPrior
from stream_vae.model.schedules import KlSchedule

_GECO_RATE = 0.03
"""How fast the multiplier follows the constraint: a violation of 100% doubles it in 23 batches."""
_GECO_MEMORY = 0.95
"""Of the constraint's moving average, in batches: short beside the multiplier's own pace, or both overshoot."""
_GECO_RANGE = (1e-4, 1e4)
_GECO_PENALTY = 10.0
"""The multiplier by which evaluation compares epochs: far above those that fits end with."""


@keras.saving.register_keras_serializable(package="stream_vae")
class CVAE(Autoencoder):
    """Encoder, decoder and the loss between them.

    It logs per stamp: `loss` (negative objective, at the current KL weight), `reconstruction_loss` (summed squared
    error), `kl_loss` (nats), `elbo` (nats, at weight 1 whatever the schedule), with labels `label_loss` (cross-entropy
    of a labelled stamp), with several draws `iwae_bound` (nats). In evaluation `loss` is taken at the schedule's final
    weight and without the label term, with `geco` at one large multiplier where the tolerance is exceeded, so epochs
    can be compared.

    Parameters
    ----------
    stamp_size, channels : int
        Shape of a stamp.
    latent_size : int
        Units of the code.
    filters : int
        Filters of each convolution.
    linear_skip : bool
        Linear paths from pixels to mean and from code to pixels.
    decoder_variance : float or None
        The decoder's sigma^2 per pixel; None fits it (analytic sigma-VAE).
    objective : {"elbo", "geco", "iwae"}
        What is maximised: the bound, reconstruction to a tolerance, or the importance-weighted bound.
    kl_weight : float
        Final weight of the KL term; `elbo` alone has one.
    anneal : {"none", "linear", "sigmoid", "cyclical"}
        How that weight gets there.
    anneal_steps : int
        Batches until it is there; 0 for no annealing.
    cycles : int
        Of `cyclical`.
    tolerance : float or None
        `geco`: the mean squared error per pixel that is aimed at.
    importance_samples : int
        `iwae`: draws a stamp.
    prior : {"normal", "vamp"}
        Standard normal, or learned.
    pseudo_inputs : int
        `vamp`: components of the prior.
    noise_map : bool
        Take each pixel's noise into the likelihood; the fitted variance is then what is left beside it.
    label_weight : float
        Weight of a labelled stamp's cross-entropy, in nats; 0 takes no labels.
    seed : int
        Of the draws from the posterior.
    **kwargs
        Passed to `keras.Model`.
    """

    def __init__(
        self,
        *,
        stamp_size: int = 21,
        channels: int = 1,
        latent_size: int = 21,
        filters: int = 32,
        linear_skip: bool = False,
        decoder_variance: float | None = None,
        objective: str = "elbo",
        kl_weight: float = 1.0,
        anneal: str = "linear",
        anneal_steps: int = 0,
        cycles: int = 4,
        tolerance: float | None = None,
        importance_samples: int = 1,
        prior: str = "normal",
        pseudo_inputs: int = 100,
        noise_map: bool = False,
        label_weight: float = 0.0,
        seed: int = 1,
        **kwargs: Any,
    ) -> None:
        settings = {
            "stamp_size": stamp_size,
            "channels": channels,
            "latent_size": latent_size,
            "filters": filters,
            "linear_skip": linear_skip,
            "decoder_variance": decoder_variance,
            "objective": objective,
            "kl_weight": kl_weight,
            "anneal": anneal,
            "anneal_steps": anneal_steps,
            "cycles": cycles,
            "tolerance": tolerance,
            "importance_samples": importance_samples,
            "prior": prior,
            "pseudo_inputs": pseudo_inputs,
            "noise_map": noise_map,
            "label_weight": label_weight,
            "seed": seed,
        }
        more = (("label_loss",) if label_weight else ()) + (("iwae_bound",) if objective == "iwae" else ())
        parts = ("reconstruction_loss", "kl_loss", "elbo", *more)
        super().__init__(settings, decoder_variance=decoder_variance, parts=parts, **kwargs)
        self.objective, self.tolerance, self.importance_samples = objective, tolerance, importance_samples
        self.noise_map, self.label_weight = noise_map, label_weight
        self.schedule = KlSchedule(kl_weight, anneal_steps, anneal, cycles)  # type: ignore[arg-type]
        self.prior: Any = VampPrior(self.encoder, pseudo_inputs) if prior == "vamp" else StandardNormal(latent_size)
        if objective == "geco":
            self.multiplier = self.state("multiplier", 1.0)
            self.violation = self.state("violation", 0.0)
        if label_weight:
            self.label_head = keras.layers.Dense(1, name="label")
            self.label_head.build((None, latent_size))

    def sample(self, z_mean: Tensor, z_log_var: Tensor, count: int | None = None) -> Tensor:
        """Draw codes from the posteriors.

        Parameters
        ----------
        z_mean, z_log_var : tensor, shape (n, latent_size)
            The encoder's two heads.
        count : int, optional
            How many a stamp; absent: one, without an axis of its own.

        Returns
        -------
        tensor, shape (n, latent_size) or (count, n, latent_size)
            Differentiable in both heads.
        """
        shape = keras.ops.shape(z_mean)
        noise = keras.random.normal(shape if count is None else (count, *shape), dtype=z_mean.dtype, seed=self.draws)
        return z_mean + keras.ops.exp(0.5 * z_log_var) * noise

    def prior_sample(self, count: int) -> Tensor:
        """Draw codes from the prior.

        Parameters
        ----------
        count : int
            How many.

        Returns
        -------
        tensor, shape (count, latent_size)
            To be decoded.
        """
        return self.prior.sample(count, seed=self.draws)

    def call(self, inputs: Any, training: bool = False) -> dict[str, Tensor]:
        """Encode, draw, decode.

        Parameters
        ----------
        inputs : tensor or dict of tensors
            Normalised stamps (n, stamp_size, stamp_size, channels), or these as `stamp`.
        training : bool
            Keras' flag; the draw is made either way, as the bound asks.

        Returns
        -------
        dict of tensors
            `z_mean`, `z_log_var`, the draw `z` and its `reconstruction`.
        """
        z_mean, z_log_var = self.encoder(stamp_of(inputs), training=training)
        z = self.sample(z_mean, z_log_var)
        return {
            "z_mean": z_mean,
            "z_log_var": z_log_var,
            "z": z,
            "reconstruction": self.decoder(z, training=training),
        }

    def compute_loss(
        self,
        x: Any = None,
        y: Tensor = None,  # noqa: ARG002 - Keras' signature; there are no targets
        y_pred: Any = None,
        sample_weight: Tensor = None,  # noqa: ARG002 - Keras' signature
        training: bool = True,
    ) -> Tensor:
        """Negative objective, averaged over the batch, at the schedule's KL weight.

        Parameters
        ----------
        x : tensor or dict of tensors
            The stamps, or these as `stamp` with `noise` and `label` where the loss takes them.
        y : None
            Unused.
        y_pred : dict of tensors
            What `call` returned.
        sample_weight : None
            Unused.
        training : bool
            Move the variance and the schedule on; in evaluation the weight is the final one.

        Returns
        -------
        tensor, scalar
            In nats a stamp.
        """
        ops = keras.ops
        squared_error = losses.summed_squared_error(stamp_of(x), y_pred["reconstruction"])
        posterior = y_pred["z_mean"], y_pred["z_log_var"]
        kl = self.prior.divergence(y_pred["z"], *posterior)
        weight = self.schedule.at(self.steps) if training else self.schedule.final
        if training:
            self.move_variance(self._unexplained(x, y_pred["reconstruction"], squared_error))
        nll = self._nll(x, y_pred["reconstruction"])
        self.log(reconstruction_loss=squared_error, kl_loss=kl, elbo=-nll - kl)
        if self.objective == "iwae":
            loss = -self._importance_weighted(x, *posterior)
            self.log(iwae_bound=-loss)
        elif self.objective == "geco":
            loss = kl + (self._constraint(squared_error) if training else self._penalty(squared_error))
        else:
            loss = nll + weight * kl
        if self.label_weight and training:
            loss = loss + self.label_weight * self._label_loss(x["label"], y_pred["z"])
        return ops.mean(loss)

    def _nll(self, x: Any, reconstruction: Tensor) -> Tensor:
        if self.noise_map:
            return losses.noise_map_nll(x["stamp"], reconstruction, x["noise"], self.variance)
        error = losses.summed_squared_error(stamp_of(x), reconstruction)
        return losses.gaussian_nll(error, self.variance, self.pixels)

    def _unexplained(self, x: Any, reconstruction: Tensor, squared_error: Tensor) -> Tensor:
        if self.noise_map:
            return losses.excess_variance(x["stamp"], reconstruction, x["noise"])
        return keras.ops.mean(squared_error) / self.pixels

    def _importance_weighted(self, x: Any, z_mean: Tensor, z_log_var: Tensor) -> Tensor:
        ops = keras.ops

        def log_joint(codes: Tensor) -> Tensor:  # (K, n, latent_size)
            stamps = self.decoder(ops.reshape(codes, (-1, codes.shape[-1])))
            stamps = ops.reshape(stamps, (self.importance_samples, -1, *stamps.shape[1:]))
            return self.prior.log_density(codes) - self._nll(x, stamps)

        z = self.sample(z_mean, z_log_var, self.importance_samples)
        return losses.importance_weighted(z, z_mean, z_log_var, log_joint)

    def _constraint(self, squared_error: Tensor) -> Tensor:
        """The multiplier's term; at multiplier 1 its gradient is a likelihood's with the tolerance as variance."""
        ops = keras.ops
        violation = ops.mean(squared_error) / (self.pixels * self.tolerance) - 1.0
        kept = ops.minimum(_GECO_MEMORY, self.steps / (self.steps + 10.0))
        self.violation.assign(ops.stop_gradient(kept * self.violation + (1.0 - kept) * violation))
        step = ops.exp(_GECO_RATE * ops.clip(self.violation, -1.0, 1.0))
        self.multiplier.assign(ops.clip(self.multiplier * step, *_GECO_RANGE))
        return ops.stop_gradient(self.multiplier) * 0.5 * self.pixels * violation

    def _penalty(self, squared_error: Tensor) -> Tensor:
        """What the multiplier cannot say from one epoch to another: the constraint comes first, then the least KL."""
        violation = keras.ops.mean(squared_error) / (self.pixels * self.tolerance) - 1.0
        return _GECO_PENALTY * 0.5 * self.pixels * keras.ops.maximum(violation, 0.0)

    def _label_loss(self, label: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of the labelled stamps, zero for the others, (n,)."""
        ops = keras.ops
        logit = self.label_head(z)[:, 0]
        known = ops.cast(label >= 0.0, logit.dtype)
        each = known * (ops.softplus(logit) - ops.maximum(label, 0.0) * logit)
        self.log(label_loss=ops.sum(each) / ops.maximum(1.0, ops.sum(known)))
        return each
