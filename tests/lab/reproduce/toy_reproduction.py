"""A reproduction that takes seconds: logistic regression, two methods, one claim of each kind."""

from dataclasses import replace

from thriftgrad.aggregate import AllGather
from thriftgrad.compress import ALQ, QSGD, TernGrad
from thriftgrad.lab.reproduce import check_accuracy, check_variance
from thriftgrad.lab.reproduce.claims import Claim, Reasons
from thriftgrad.lab.reproduce.probes import Probe, ProbedGradients
from thriftgrad.lab.reproduce.reproduction import Reproduction
from thriftgrad.lab.reproduce.studies import AdamMethod, Arm, Study
from thriftgrad.lab.reproduce.synthetic import ZeroLevel
from thriftgrad.recipes import sgd
from thriftgrad.train.method import Method

ARMS = (Arm("SGD", sgd()), Arm("QSGD, 4 bits", Method(AllGather(QSGD(bits=4)))))
TUNED = Study("main", "logreg", ARMS, seeds=2, steps=10, step_seconds=0.001, grid=(0.1, 1.0), tuning_steps=6, workers=2)
ADAM = replace(TUNED, name="adam", arms=(Arm("Adam on SGD", AdamMethod(sgd().aggregator)),), batch_size=8)
PROBES = (
    Probe("4 bits", "QSGD", QSGD(bits=4), (2, 4)),
    Probe("4 bits", "ALQ", ALQ(bits=4), (2, 4)),
    Probe("4 bits", "ALQ, first levels", ALQ(bits=4), (2, 4), fitted=(0,)),
    Probe("4 bits", "TernGrad", TernGrad(), (2, 4)),
)
REASONS = Reasons(holds="It is so.", contradicted="It is not <so>.")


def toy(**changes):
    return Reproduction(
        **{
            "name": "toy",
            "paper": "A toy <paper>",
            "quick": True,
            "claims": (
                Claim(
                    "ALQ has less variance than QSGD.",
                    "So they say (unverified).",
                    check_variance.less("gradients", "4 bits", [("ALQ", "QSGD")], REASONS, ["ALQ", "QSGD", "TernGrad"]),
                ),
                Claim(
                    "QSGD | matches.",
                    "Reviews.",
                    check_accuracy.matches("main", [("QSGD, 4 bits", "SGD")], REASONS, margin=0.1),
                ),
            ),
            "measurements": (
                *(ProbedGradients(f"gradients-seed{seed}", "logreg", seed, PROBES, 1.0) for seed in (0, 1)),
                ZeroLevel("zero-level", n=64, draws=1),
            ),
            "studies": (TUNED, ADAM),
        }
        | changes
    )
