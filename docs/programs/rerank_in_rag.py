"""Rerank in retrieval-augmented generation: the same three passages, for a part of the layers.

Words find twenty candidates; the cross encoder ranks them, and candidates that cannot be among the best three exit.
Run: python rerank_in_rag.py my-reranker passages.txt queries.txt     (one on each line; best 500 old queries or more)
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from ponder.integrations.sentence_transformers import CrossEncoder


def main(model: str, passages_file: str, queries_file: str) -> None:
    """Fit exits to a reranker on old queries, and make the prompt of the last one."""
    passages = Path(passages_file).read_text().splitlines()
    *log, question = Path(queries_file).read_text().splitlines()
    words = TfidfVectorizer().fit(passages)
    index = words.transform(passages)

    def candidates(query: str) -> dict[str, object]:
        scores = (index @ words.transform([query]).T).toarray()[:, 0]
        best = np.argsort(-scores, kind="stable")[:20]
        documents = [passages[place] for place in best]
        return {"query": query, "documents": documents, "scores": scores[best].tolist()}

    ranker = CrossEncoder(model)
    print(ranker.fit_exits([candidates(query) for query in log], top_k=3, changed=0.1).statement)
    asked = candidates(question)
    best = ranker.rank(question, asked["documents"], scores=asked["scores"], return_documents=True)
    print("\n".join(["Answer from these passages only:", *[each["text"] for each in best[:3]]]))
    print("Question:", question)


if __name__ == "__main__":
    main(*sys.argv[1:4])
