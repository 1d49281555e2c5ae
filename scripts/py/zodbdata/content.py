"""Made-up documents: plausible words, plausible sizes, from a seeded Random."""

import datetime

import pytz

from . import classes as c

WORDS = (
    "archive board budget catalogue chapter committee council culture data decision department draft "
    "education election energy environment event exhibition family festival finance forest funding garden "
    "harbour health history hospital house housing investment journal kitchen language law library market "
    "meeting member minister museum music nature newsletter notice office opening order park parliament "
    "permit planning policy project protocol public quarter region register report research review river "
    "road safety school service session society sports station statistics street student subsidy summer "
    "survey tax theatre tourism town traffic train transport university village water weather winter "
    "Übersicht Straßenbau Gemeinderätin Öffnungszeiten café naïve Łódź smörgåsbord Ελλάδα Москва 東京 日本語 "
    "العربية עברית ภาษาไทย 🎉 ﬁn e\u0301te\u0301 zero\u200bwidth"
).split()

TYPES = (
    (c.Document, "Document", 60), (c.NewsItem, "News Item", 20), (c.Event, "Event", 10), (c.Comment, "Discussion Item", 10),
)
USERS = ("admin", "editor", "maria.huber", "jürgen", "sofía", "李雷", "cron")
ZONES = ("Europe/Vienna", "America/New_York", "Asia/Kolkata", "UTC")


class Content:
    """Gives states of documents of about the wanted size."""

    def __init__(self, random, size):
        self.random = random
        self.size = size
        # Words are joined once; a document takes pieces of this text.
        self.text = " ".join(random.choices(WORDS, k=60_000))
        self.types = [t for t in TYPES for _ in range(t[2])]
        self.zones = [pytz.timezone(z) for z in ZONES]
        self.day = datetime.datetime(2004, 2, 29, 11, 59, 58, 123456)

    def sentence(self, length):
        start = self.random.randrange(len(self.text) - length - 1)
        return self.text[start:start + length].strip()

    def moment(self):
        return self.day + datetime.timedelta(seconds=self.random.randrange(600_000_000), microseconds=self.random.choice((0, 0, 1, 999_999)))

    def date_time(self):
        seconds = self.random.randrange(1_000_000_000, 1_900_000_000)
        return c.DateTime(_micros=seconds * 1_000_000 + self.random.randrange(1_000_000), _timezone_naive=False, _tz="GMT+1")

    def document(self, number, parent, annotations):
        """Return class and state; parent and annotations are references."""
        random = self.random
        cls, portal_type, _ = self.types[random.randrange(len(self.types))]
        body = max(200, self.size - 1500)
        length = max(40, int(random.lognormvariate(0, 0.55) * 0.86 * body))
        moment = self.moment()
        zone = self.zones[number % len(self.zones)]
        title = self.sentence(random.randrange(12, 60))
        state = {
            "id": f"{portal_type.lower().replace(' ', '-')}-{number}",
            "title": title,
            "description": self.sentence(random.randrange(20, 160)),
            "portal_type": portal_type,
            "language": random.choice(("en", "de", "el", "ja", "")),
            "creators": (random.choice(USERS),),
            "subject": tuple(random.sample(WORDS, random.randrange(4))),
            "rights": "",
            "creation_date": self.date_time(),
            "modification_date": self.date_time(),
            "effective": zone.localize(moment) if zone is not pytz.utc else moment.replace(tzinfo=datetime.timezone.utc),
            "expires": None,
            "start": moment.date(),
            "duration": datetime.timedelta(minutes=random.randrange(600), microseconds=random.randrange(2)),
            "exclude_from_nav": random.random() < 0.5,
            "text": c.RichTextValue(
                _mimeType="text/html", _outputMimeType="text/x-html-safe", _encoding="utf-8",
                raw=f"<h2>{title}</h2>\n<p>{self.sentence(length)}</p>\r\n",
            ),
            "__parent__": parent,
            "__ac_local_roles__": {random.choice(USERS): ["Owner"]},
            "_owner": (["acl_users"], "admin"),
            "workflow": {
                "simple_publication_workflow": [
                    {"action": None, "actor": "admin", "comments": "", "review_state": "private", "time": self.date_time()},
                    {"action": "publish", "actor": random.choice(USERS), "comments": title[:9], "review_state": "published",
                     "time": self.date_time()},
                ],
            },
            "layout": {
                "tiles": [
                    {"id": f"tile-{i}", "width": random.randrange(1, 13), "ratio": random.random(), "visible": i % 2 == 0}
                    for i in range(random.randrange(6))
                ],
                "version": 1.5,
            },
            "votes": {random.randrange(1000): random.randrange(-5, 6) for _ in range(random.randrange(4))},
            "seen": {random.randrange(100) for _ in range(random.randrange(4))},
            "checksum": random.randbytes(16),
        }
        if annotations is not None:
            state["__annotations__"] = annotations
        return cls, state
