"""Where the data sets of the shipped recipes come from, and under which terms: what a card has to say and no file of a run records."""

from __future__ import annotations

from dataclasses import dataclass, field

_AMAZON = (
    "Reviews and product metadata of Amazon from May 1996 to July 2014, collected by Julian McAuley's group at UC San Diego "
    "(McAuley et al., SIGIR 2015; He and McAuley, WWW 2016); the category {category}, users and items with at least five reviews. "
    "The build that circulates among papers on sequential recommendation is used: it has no pictures, its time is a review's position "
    "in its user's history, and the order of a user's reviews of one day is arbitrary."
)
_AMAZON_TERMS = (
    "The collection is offered for research without a licence of its own; texts and pictures belong to Amazon and to the reviewers. "
    "Do not redistribute them."
)
_AMAZON_URL = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"


@dataclass(frozen=True)
class Provenance:
    """What is known about the source of a data set."""

    title: str = field(metadata={"help": "The data set's name as people write it."})
    origin: str = field(metadata={"help": "Who collected it, when, and how the copy used here differs."})
    terms: str = field(metadata={"help": "What its terms allow."})
    url: str | None = field(default=None, metadata={"help": "Where it is published."})
    terms_url: str | None = field(default=None, metadata={"help": "Where its terms stand."})
    language: str | None = field(default=None, metadata={"help": "ISO 639-1 code of the items' texts."})
    content: tuple[str, ...] = field(default=("image", "text"), metadata={"help": "Kinds of content its items have, as far as known."})


PROVENANCE = {
    "beauty": Provenance("Amazon Beauty 2014", _AMAZON.format(category="Beauty"), _AMAZON_TERMS, _AMAZON_URL, _AMAZON_URL, "en", ("text",)),
    "sports": Provenance(
        "Amazon Sports & Outdoors 2014",
        _AMAZON.format(category="Sports & Outdoors"),
        _AMAZON_TERMS,
        _AMAZON_URL,
        _AMAZON_URL,
        "en",
        ("text",),
    ),
    "yelp": Provenance(
        "Yelp 2019",
        "Reviews of businesses from January to December 2019 out of the Yelp Open Dataset, users and businesses with at least five, in the "
        "build that S3-Rec (Zhou et al., CIKM 2020) and P5 (Geng et al., RecSys 2022) circulate. It has no pictures, and its time is a "
        "review's position in its user's history. A user may review a business more than once.",
        "Yelp's dataset licence allows academic use and forbids redistribution.",
        "https://business.yelp.com/data/resources/open-dataset/",
        "https://business.yelp.com/data/resources/open-dataset/",
        "en",
        ("text",),
    ),
    "movielens-100k": Provenance(
        "MovieLens 100K",
        "100,000 ratings of films, collected through the MovieLens site from September 1997 to April 1998 by GroupLens, University of "
        "Minnesota (Harper and Konstan, ACM TiiS 2015), joined with posters and plot overviews; films without a poster are left out.",
        "GroupLens allows research, and neither commercial use nor redistribution without permission; posters and plots belong to the "
        "films' owners.",
        "https://grouplens.org/datasets/movielens/100k/",
        "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt",
        "en",
    ),
    "sample": Provenance(
        "Sample shop",
        "Made up by `cemg_hf.data.sample` from a seed: 600 products with drawn pictures and template texts, and customers whose choices "
        "follow tastes, series and sequences of needs. No real person or product is in it.",
        "Apache-2.0, as the code that makes it.",
        language="en",
    ),
}
"""By the name of the data set in the recipe, `prepare.name`."""


def provenance(data: str) -> Provenance:
    """What is known about a data set; for one that no shipped recipe reads, that nothing is."""
    unknown = Provenance(data, "The source is not recorded.", "Ask whoever holds the data before you share what was made from it.")
    return PROVENANCE.get(data, unknown)
