"""The reward of the whole-step benchmark, the one that `trl` gets too: whether the answer's text is in the response."""


def contains_answer(response: str, answer: str, question: str, metadata: dict) -> float:
    return float(answer in response)
