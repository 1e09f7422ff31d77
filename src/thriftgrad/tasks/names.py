"""The names of the tasks, kept apart so that a command line can list them without importing torch."""

EMBEDDED = {
    "digits": "1 797 images of handwritten digits, 8 x 8; a small CNN with 38 282 parameters",
    "digits32": "the same digits in 32 x 32 pixels; ResNet-8 with 75 290 parameters",
    "digits18": "the digits of digits32; ResNet-18 an eighth as wide, with 176 402 parameters",
    "logreg": "breast cancer, 569 samples; L2-regularised logistic regression with 30 parameters, known optimum",
    "softmax": "the same digits; L2-regularised softmax regression with 650 parameters, convex",
    "text": "the prose of Python's own documentation, 466 kB; a byte-level GPT with 279 168 parameters",
    "lstm": "the prose of text; a byte-level LSTM with two layers and 173 824 parameters",
}
"""Tasks whose data comes with Python or scikit-learn, each with one line about it."""

OWN_DATA = {
    "cifar10": "your CIFAR-10, 60 000 images, 32 x 32; ResNet-20 with 269 722 parameters",
    "mnist": "your MNIST or Fashion-MNIST, 70 000 images, 28 x 28; a small CNN with 38 282 parameters",
    "images": "your folder of images, one folder per class; ResNet-18 with about 11.2 million parameters",
    "tokens": "your token files (nanoGPT or llm.c); a GPT of width 256 and depth 4",
}
"""Tasks that read the user's files, each with one line about it."""

DESCRIPTIONS = EMBEDDED | OWN_DATA
"""Every task's name with one line about it."""
