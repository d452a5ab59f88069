"""Write examples/requests.jsonl: a day's mixed work, small enough for a 135-million-parameter model.

Summaries (with n = 2 and a seed), translations, classifications with a json_schema. Run it again after
changing a text; `batchmill check examples/requests.jsonl` looks at the result.
"""

from __future__ import annotations

import json
from pathlib import Path

MODEL = "smollm2-135m-instruct"
OUT = Path(__file__).with_name("requests.jsonl")

ARTICLES = {
    "lighthouse": "The lighthouse on Gull Rock was built in 1871 after three ships were lost there in one winter. "
    "Its lamp burned whale oil, then paraffin, and since 1954 electricity. The last keeper left in 1988, when "
    "the lamp became automatic. Today the tower is a museum, and visitors can sleep in the keeper's room.",
    "bakery": "A bakery in the old town has sold the same rye bread for ninety years. The starter came from the "
    "founder's grandmother and is fed twice a day. When the oven broke in March, neighbours lent their kitchens "
    "for a week so that the bread would not miss a single morning.",
    "river": "After two dry summers, the river Ost fell to its lowest level since measurements began. Ferries stopped, "
    "and farmers were asked to water at night only. Heavy rain in October brought the level back within ten days, "
    "but the council still plans two new reservoirs.",
    "library": "The city library will stay open until midnight during the exam weeks in May and June. Students asked "
    "for it in a petition with four thousand signatures. Two extra guards will be paid by the university.",
    "bees": "Researchers fitted tiny tags to two hundred bees and followed them for a summer. Most bees visited fewer "
    "than five kinds of flowers, although forty kinds grew nearby. The older bees flew further and made fewer stops.",
    "tram": "Line 7 returns on Monday after eleven months of works. The track was renewed, four stops were raised for "
    "wheelchairs, and trees were planted along the mall. The project cost nine million, one million less than planned.",
}

PHRASES = {
    "greeting": "Good morning, how are you today?",
    "station": "Where is the train station?",
    "coffee": "I would like a cup of coffee, please.",
    "rain": "It will rain tomorrow afternoon.",
    "library": "The library is open until midnight.",
    "thanks": "Thank you very much for your help.",
}

REVIEWS = {
    "kettle": "Boils fast and looks lovely on the counter. Best purchase this year.",
    "boots": "The sole came off after two weeks of normal walking. I want my money back.",
    "lamp": "It is a lamp. It gives light. Delivery took five days.",
    "tent": "Survived a storm on the first night and stayed completely dry inside!",
    "headset": "The left ear crackles and support never answered my three messages.",
    "notebook": "Paper is thin, but the price is fair and the cover is sturdy.",
}

SENTIMENT = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}


def request(custom_id: str, system: str, user: str, **body: object) -> dict[str, object]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": messages, **body},
    }


def requests() -> list[dict[str, object]]:
    found = [
        request(f"summary-{name}", "You summarize news in one short sentence.", f"Summarize: {text}",
                n=2, seed=7, temperature=0.7, max_tokens=60)
        for name, text in ARTICLES.items()
    ]  # fmt: skip
    found += [
        request(f"translation-{name}", "You translate English into French. Answer with the translation only.", text,
                temperature=0, max_tokens=40)
        for name, text in PHRASES.items()
    ]  # fmt: skip
    found += [
        request(f"review-{name}", "You judge product reviews.", f"What is the sentiment of this review? {text}",
                seed=7, temperature=0, max_tokens=30,
                response_format={"type": "json_schema",
                                 "json_schema": {"name": "sentiment", "strict": True, "schema": SENTIMENT}})
        for name, text in REVIEWS.items()
    ]  # fmt: skip
    return found


if __name__ == "__main__":
    OUT.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in requests()), encoding="utf-8")
    print(f"{OUT}  {len(requests())} requests")
