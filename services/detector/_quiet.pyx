# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The same as `plain`, compiled, and what makes it worth it: `Quiet.take`. What the names mean is said there."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp

from services.detector import plain
from shared import messages

cdef extern from *:
    const char *QUIET_SOURCE  # defined when it is compiled

SOURCE = QUIET_SOURCE.decode()
"""SHA-256 of the source that this was compiled from."""

cdef double NO_BID = plain.NO_BID
cdef double NO_ASK = plain.NO_ASK
cdef double LEAST = plain.LEAST
cdef double MOST = plain.MOST
cdef double CLEAR = plain.CLEAR
cdef double NOTHING_SEEN = plain.NOTHING_SEEN
cdef long long NEVER_NS = plain.NEVER_NS
cdef long long SECOND_NS = plain.SECOND_NS
cdef long long DAY_NS = plain.DAY_NS
cdef str LIVE = "live"
cdef unsigned long long BIGGEST = 2 ** 63 - 1
cdef long long LAST_NS = messages.LAST_NS

cdef unsigned long long EXACT_INTEGERS = 2 ** 53
cdef enum:
    EXACT_POWERS = 23
cdef double POWERS[EXACT_POWERS]  # 10 ** n: up to 22 a double holds it exactly
cdef int _n
for _n in range(EXACT_POWERS):
    POWERS[_n] = float(10 ** _n)


cdef class Quote:
    cdef public double bid, ask
    cdef public long long good_until_ns


cdef enum:
    MOST_MIDS = 61


cdef class Mids:
    cdef long long _seconds[MOST_MIDS]
    cdef double _mids[MOST_MIDS]
    cdef int _first, _count
    cdef readonly long long next_ns

    cdef void _add(self, long long received_ns, double mid) noexcept:
        cdef long long second = received_ns // SECOND_NS
        cdef int place = (self._first + self._count) % MOST_MIDS
        self._seconds[place], self._mids[place] = second, mid
        if self._count < MOST_MIDS:
            self._count += 1
        else:
            self._first = (self._first + 1) % MOST_MIDS
        self.next_ns = (second + 1) * SECOND_NS

    def add(self, long long received_ns, double mid):
        if received_ns >= self.next_ns:
            self._add(received_ns, mid)

    def since(self, long long second):
        cdef int at
        places = [(self._first + at) % MOST_MIDS for at in range(self._count)]
        return [(self._seconds[at], self._mids[at]) for at in places if self._seconds[at] >= second]


cdef class BookTop:
    cdef public double best_bid, best_ask
    cdef public long long sequence, version
    cdef public long long received_ns, alive_ns, touched_ns
    cdef public Py_ssize_t slot
    cdef public long long fee_day
    cdef public bint fee_known
    cdef public double buy_factor, sell_factor
    cdef public str exchange, state
    cdef public list gaps
    cdef public CoinTops coin
    cdef public Quote fx
    cdef readonly Mids mids
    cdef bytes _value, _bids, _asks
    cdef Py_ssize_t _bids_at, _bids_end, _asks_at, _asks_end

    def __init__(self, str exchange, Quote fx):
        self.exchange = exchange
        self.fx = fx
        self.mids = Mids()
        self.gaps = []
        self.state = "syncing"
        self.sequence = -1
        self._bids = self._asks = b"[]"
        self.best_bid, self.best_ask = NO_BID, NO_ASK
        self.fee_day = -1
        self.buy_factor = NO_ASK

    def put(self, long long received_ns, bytes bids, bytes asks, double best_bid, double best_ask):
        self._value, self._bids, self._asks = None, bids, asks
        self.best_bid, self.best_ask = best_bid, best_ask
        self.version += 1
        self.received_ns = self.alive_ns = self.touched_ns = received_ns
        self.state = LIVE
        if best_bid > NO_BID and best_ask < NO_ASK:
            self.mids.add(received_ns, (best_bid + best_ask) / 2)

    @property
    def bids_text(self):
        if self._value is None:
            return self._bids
        return self._value[self._bids_at:self._bids_end]

    @property
    def asks_text(self):
        if self._value is None:
            return self._asks
        return self._value[self._asks_at:self._asks_end]


cdef class CoinTops:
    cdef public bint owned, bridge, bridged, mixed, has_moved
    cdef public list books
    cdef long long _version
    cdef double *_prices  # bids, asks, and both in USD, each of _room places
    cdef Py_ssize_t _count, _room

    def __init__(self, *, bint owned, bint bridge):
        self.owned, self.bridge = owned, bridge
        self.books = []
        self._version = -1

    def __dealloc__(self):
        free(self._prices)

    def add(self, BookTop book):
        book.coin, book.slot = self, self._count
        self.books.append(book)
        cdef Py_ssize_t room = max(8, 2 * self._room), at
        cdef double *prices
        if self._count == self._room:
            prices = <double *>realloc(self._prices, 4 * room * sizeof(double))
            if prices == NULL:
                raise MemoryError
            self._prices, self._room = prices, room
        self._count += 1
        for at in range(self._count):  # the rows stand elsewhere now
            self._note(at, (<BookTop>self.books[at]).best_bid, (<BookTop>self.books[at]).best_ask)
        self._version = -1

    cdef void _note(self, Py_ssize_t slot, double bid, double ask) noexcept:
        self._prices[slot] = bid
        self._prices[self._room + slot] = ask

    cdef void _note_usd(self, Py_ssize_t slot, double bid, double ask, Quote fx) noexcept:
        self._prices[2 * self._room + slot] = bid * fx.bid
        self._prices[3 * self._room + slot] = ask * fx.ask

    cdef void _convert(self, long long version):
        cdef BookTop book
        cdef Py_ssize_t at
        if self._version != version:
            self._version = version
            for at in range(self._count):
                book = <BookTop>PyList_GET_ITEM(self.books, at)
                self._note_usd(at, book.best_bid, book.best_ask, book.fx)

    cdef bint _crosses(self, Py_ssize_t row, Py_ssize_t slot, double bid, double ask) noexcept:
        """Whether prices of the book in `slot` cross those of any book; `row` is that of the bids, of the asks next."""
        cdef double *bids = self._prices + row * self._room
        cdef double *asks = bids + self._room
        cdef Py_ssize_t at
        if bid > ask:
            return True
        for at in range(self._count):
            if at != slot and (bids[at] > ask or bid > asks[at]):
                return True
        return False

    cdef bint _would_cross(self, BookTop book, double bid, double ask, long long version):
        if self.mixed:
            self._convert(version)
            if self._crosses(2, book.slot, bid * book.fx.bid, ask * book.fx.ask):
                return True
        return self._crosses(0, book.slot, bid, ask)

    cdef Py_ssize_t _pairs(self, BookTop book, double bid, double ask):
        """With how many books of other exchanges a book of these prices crosses, in either direction. After
        `_would_cross`, which has converted."""
        cdef double usd_bid = bid * book.fx.bid, usd_ask = ask * book.fx.ask
        cdef double *bids = self._prices
        cdef double *asks = bids + self._room
        cdef double *usd_bids = asks + self._room
        cdef double *usd_asks = usd_bids + self._room
        cdef Py_ssize_t at, found = 0
        for at in range(self._count):
            if at == book.slot or (<BookTop>PyList_GET_ITEM(self.books, at)).exchange == book.exchange:
                continue
            found += bids[at] > ask or (self.mixed and usd_bids[at] > usd_ask)
            found += bid > asks[at] or (self.mixed and usd_bid > usd_asks[at])
        return found

    cdef void _moved(self, BookTop book) noexcept:
        self._note(book.slot, book.best_bid, book.best_ask)
        if self.mixed:
            self._note_usd(book.slot, book.best_bid, book.best_ask, book.fx)

    def moved(self, BookTop book, long long version):
        cdef bint crosses = self._would_cross(book, book.best_bid, book.best_ask, version)
        self._moved(book)
        return crosses

    def crosses_converted(self, long long version):
        cdef double bid = NO_BID, ask = NO_ASK
        cdef Py_ssize_t at
        if not self.mixed:
            return False
        self._convert(version)
        for at in range(self._count):
            bid = max(bid, self._prices[2 * self._room + at])
            ask = min(ask, self._prices[3 * self._room + at])
        return bid > ask


cdef class GapTop:
    cdef public BookTop buy, sell, bridge
    cdef public object opportunity, rejection
    cdef public object gone_ns, passing_ns, failing_ns
    cdef public bint adopted
    cdef public int eaten
    cdef public long long published_ns, refused_ns, recheck_ns, due_ns
    cdef public double best_seen_bps
    cdef double _net_bps  # while a tick is looked at

    def __init__(self, BookTop buy, BookTop sell, BookTop bridge):
        self.buy, self.sell, self.bridge = buy, sell, bridge
        self.refused_ns = -1
        self.recheck_ns = self.due_ns = NEVER_NS
        self.best_seen_bps = NOTHING_SEEN

    cdef void _note(self, long long now_ns):
        """It was looked at, and stays as it is: of a rejection it matters when, and what its edge was."""
        if self.gone_ns is None and self.opportunity is None:
            self.refused_ns = now_ns
            self.best_seen_bps = max(self.best_seen_bps, self._net_bps)


# ---------------------------------------------------------------- the text of a book, as our collectors write it

cdef inline const char *after(const char *at, const char *end, const char *words, Py_ssize_t count) noexcept:
    """Behind `words`; NULL if they do not stand here."""
    if at == NULL or end - at < count or memcmp(at, words, count) != 0:
        return NULL
    return at + count


cdef inline const char *name(const char *at, const char *end) noexcept:
    """At the closing quote of a plain text; NULL where it is not plain."""
    if at == NULL:
        return NULL
    while at < end and at[0] != c'"':
        if at[0] == c"\\" or <unsigned char>at[0] < 0x20:
            return NULL
        at += 1
    return at if at < end else NULL


cdef inline const char *whole(const char *at, const char *end, long long *found) noexcept:
    """Behind a whole number below 2 ** 63; NULL if there is none."""
    cdef const char *first = at
    cdef unsigned long long number = 0
    if at == NULL:
        return NULL
    while at < end and c"0" <= at[0] <= c"9":
        number = number * 10 + <unsigned long long>(at[0] - c"0")
        at += 1
        if at - first > 19:
            return NULL
    if at == first or (first[0] == c"0" and at - first > 1) or number > BIGGEST:
        return NULL
    found[0] = <long long>number
    return at


cdef inline const char *digits(const char *at, const char *end) noexcept:
    while at < end and c"0" <= at[0] <= c"9":
        at += 1
    return at


cdef inline const char *number(const char *at, const char *end) noexcept:
    """Behind a JSON number without a sign; NULL if there is none."""
    cdef const char *first = at
    at = digits(at, end)
    if at == first or (first[0] == c"0" and at - first > 1):
        return NULL
    if at < end and at[0] == c".":
        first = at + 1
        at = digits(first, end)
        if at == first:
            return NULL
    if at < end and (at[0] == c"e" or at[0] == c"E"):
        at += 1
        if at < end and (at[0] == c"-" or at[0] == c"+"):
            at += 1
        first = at
        at = digits(at, end)
        if at == first:
            return NULL
    return at


cdef inline bint value(const char *at, const char *end, double *found) noexcept:
    """The double nearest to a JSON number, where that is certain by one division or product: both exact."""
    cdef unsigned long long mantissa = 0
    cdef int count = 0, power = 0, written = 0, sign = 1
    cdef bint fraction = False
    while at < end:
        if at[0] == c".":
            fraction = True
        elif at[0] == c"e" or at[0] == c"E":
            at += 1
            break
        else:
            count += mantissa > 0 or at[0] != c"0"
            if count > 18:
                return False
            mantissa = mantissa * 10 + <unsigned long long>(at[0] - c"0")
            power -= fraction
        at += 1
    while at < end:
        if at[0] == c"-":
            sign = -1
        elif at[0] != c"+":
            written = written * 10 + (at[0] - c"0")
            if written > 400:
                return False
        at += 1
    power += sign * written
    if mantissa > EXACT_INTEGERS or not -EXACT_POWERS < power < EXACT_POWERS:
        return False
    found[0] = <double>mantissa / POWERS[-power] if power < 0 else <double>mantissa * POWERS[power]
    return True


cdef const char *side(const char *at, const char *end, double *best) noexcept:
    """Behind a list of at least one [price, size]; NULL if it is none. `best` is the first price."""
    cdef const char *first
    cdef bint top = True
    if at == NULL or end - at < 2 or at[0] != c"[":
        return NULL
    at += 1
    while True:
        if at >= end or at[0] != c"[":
            return NULL
        first = at + 1
        at = number(first, end)
        if at == NULL or at >= end or at[0] != c",":
            return NULL
        if top:
            top = False
            if not value(first, at, best) or not LEAST <= best[0] <= MOST:
                return NULL
        at = number(at + 1, end)
        if at == NULL or end - at < 2 or at[0] != c"]":
            return NULL
        at += 1
        if at[0] == c"]":
            return at + 1
        if at[0] != c",":
            return NULL
        at += 1


cdef bytes on_the_wire(str exchange, str symbol):
    """From the first letter of the exchange to the last of the symbol, as they stand in a record."""
    return f'{exchange}","symbol":"{symbol}'.encode()


cdef class Quiet:
    cdef dict _books
    cdef long long _max_silence_ns, _max_age_ns, _max_skew_ns, _update_min_ns, _update_max_ns, _reasons_min_ns
    cdef double _most_net

    def __init__(self, gates):
        self._books = {}
        self._max_silence_ns, self._max_age_ns, self._max_skew_ns = gates[:3]
        self._update_min_ns, self._update_max_ns, self._reasons_min_ns, self._most_net = gates[3:]

    def know(self, str exchange, str symbol, BookTop book):
        self._books[on_the_wire(exchange, symbol)] = book

    def forget(self, str exchange, str symbol):
        del self._books[on_the_wire(exchange, symbol)]

    def take(self, list values, Py_ssize_t at, long long now_ns, long long sure_ns, long long until_ns,
             long long version):
        cdef Py_ssize_t count = PyList_GET_SIZE(values)
        while at < count and self._take(<object>PyList_GET_ITEM(values, at), &now_ns, sure_ns, until_ns, version):
            at += 1
        return at, now_ns

    cdef bint _take(self, object record, long long *now_ns, long long sure_ns, long long until_ns,
                    long long version) except -1:
        """Whether the record was taken in; if not, nothing has changed."""
        cdef const char *begin
        cdef const char *end
        cdef const char *first
        cdef const char *at
        cdef const char *bids
        cdef const char *bids_end
        cdef const char *asks
        cdef PyObject *found
        cdef BookTop book
        cdef CoinTops coin
        cdef long long sequence = 0, received_ns = 0, ignored = 0, moment_ns = now_ns[0]
        cdef double bid = 0, ask = 0
        cdef bint crosses
        if not PyBytes_CheckExact(record):
            return False
        begin = PyBytes_AS_STRING(record)
        end = begin + PyBytes_GET_SIZE(record)
        first = after(begin, end, b'{"kind":"book","v":1,"exchange":"', 33)
        at = name(after(name(first, end), end, b'","symbol":"', 12), end)
        if at == NULL:
            return False
        found = PyDict_GetItem(self._books, PyBytes_FromStringAndSize(first, at - first))
        if found == NULL:
            return False
        book = <BookTop>found
        coin = book.coin
        if coin.bridged or not coin.owned:
            return False
        at = whole(after(at, end, b'","sequence":', 13), end, &sequence)
        at = whole(after(at, end, b',"received_ns":', 15), end, &received_ns)
        at = after(at, end, b',"exchange_ns":', 15)
        if at == NULL or sequence <= book.sequence or received_ns > LAST_NS:
            return False
        if received_ns > moment_ns:
            if received_ns > sure_ns:
                return False
            moment_ns = received_ns
        if moment_ns > until_ns:
            return False
        at = after(at, end, b"null", 4) if at[0] == c"n" else whole(at, end, &ignored)
        bids = after(at, end, b',"bids":', 8)
        bids_end = side(bids, end, &bid)
        asks = after(bids_end, end, b',"asks":', 8)
        at = side(asks, end, &ask)
        if at == NULL or end - at != 1 or at[0] != c"}":
            return False
        crosses = coin._would_cross(book, bid, ask, version)
        if ((crosses or PyList_GET_SIZE(book.gaps))
                and not self._all_stay(book, coin, bid, ask, received_ns, moment_ns, crosses)):
            return False
        book._value = <bytes>record
        book._bids_at, book._bids_end = bids - begin, bids_end - begin
        book._asks_at, book._asks_end = asks - begin, at - begin
        book.best_bid, book.best_ask = bid, ask
        book.sequence = sequence
        book.version += 1
        book.received_ns = book.alive_ns = book.touched_ns = received_ns
        book.state = LIVE
        coin._moved(book)
        coin.has_moved = True
        if received_ns >= book.mids.next_ns:
            book.mids._add(received_ns, (bid + ask) / 2)
        now_ns[0] = moment_ns
        return True

    cdef bint _all_stay(self, BookTop book, CoinTops coin, double bid, double ask, long long received_ns,
                        long long now_ns, bint crosses) except -1:
        """Whether all that is open stays as it is with these prices, and nothing else crosses; if so that is noted."""
        cdef Py_ssize_t at, crossing = 0, count = PyList_GET_SIZE(book.gaps)
        cdef int stays
        if bid > ask:
            return False
        for at in range(count):
            stays = self._stays(<GapTop>PyList_GET_ITEM(book.gaps, at), book, bid, ask, received_ns, now_ns)
            if stays < 0:
                return False
            crossing += stays
        if crossing != (coin._pairs(book, bid, ask) if crosses else 0):
            return False
        for at in range(count):
            (<GapTop>PyList_GET_ITEM(book.gaps, at))._note(now_ns)
        return True

    def stays(self, GapTop gap, long long now_ns):
        if gap.gone_ns is not None or self._stays(gap, None, 0, 0, 0, now_ns) < 0:
            return False
        gap._note(now_ns)
        return True

    cdef int _stays(self, GapTop gap, BookTop book, double bid, double ask, long long received_ns, long long now_ns):
        """1: it crosses, and stays as it is. 0: it does not cross, and was gone before. -1: something may change.

        Where `book` is one of the two, with the prices and the moment given instead of its own.
        """
        cdef BookTop buy = gap.buy, sell = gap.sell
        cdef double give = sell.fx.bid, obtain = buy.fx.ask, gain = sell.sell_factor, cost = buy.buy_factor
        cdef double net, fees, conversion
        cdef long long buy_alive_ns = buy.alive_ns, buy_received_ns = buy.received_ns
        cdef long long sell_alive_ns = sell.alive_ns, sell_received_ns = sell.received_ns
        cdef long long first_alive_ns, first_received_ns, due_ns
        cdef long long day = now_ns // DAY_NS
        cdef bint converted
        cdef int eaten
        if gap.bridge is not None or buy.exchange == sell.exchange:  # the second is none that we would open
            return -1
        if book is buy:
            bid, buy_alive_ns, buy_received_ns = sell.best_bid, received_ns, received_ns
        elif book is sell:
            ask, sell_alive_ns, sell_received_ns = buy.best_ask, received_ns, received_ns
        else:
            bid, ask = sell.best_bid, buy.best_ask
        converted = bid * give > ask * obtain
        if gap.gone_ns is not None:
            return -1 if bid > ask or converted else 0
        if not (bid > ask or converted) or gap.passing_ns is not None:
            return -1
        if (book is not buy and buy.state != LIVE) or (book is not sell and sell.state != LIVE):
            return -1
        first_alive_ns = min(buy_alive_ns, sell_alive_ns)
        first_received_ns = min(buy_received_ns, sell_received_ns)
        if (now_ns - first_alive_ns > self._max_silence_ns or now_ns - first_received_ns > self._max_age_ns
                or max(buy_alive_ns, sell_alive_ns) - first_alive_ns > self._max_skew_ns):
            return -1
        if not (buy.fee_known and sell.fee_known and buy.fee_day == day and sell.fee_day == day):
            return -1
        if buy.fx.good_until_ns < now_ns or sell.fx.good_until_ns < now_ns:
            return -1
        if book is not None:  # when time alone may change something: no sooner than is noted
            due_ns = min(first_alive_ns + self._max_silence_ns, first_received_ns + self._max_age_ns) + 1
            if (gap.due_ns <= now_ns or min(due_ns, gap.recheck_ns) < gap.due_ns
                    or (gap.opportunity is not None and gap.published_ns + self._update_max_ns < gap.due_ns)):
                return -1
        net = bid * give * gain / (ask * obtain * cost) - 1
        if gap.opportunity is not None:
            if (gap.adopted or gap.failing_ns is not None or now_ns >= gap.recheck_ns
                    or gap.recheck_ns != gap.published_ns + self._update_min_ns):
                return -1
            return 1 if CLEAR < net < self._most_net else -1
        if gap.rejection is None or not net < -CLEAR:
            return -1
        fees, conversion = bid * gain / (ask * cost) - 1, bid * give / (ask * obtain) - 1
        if -CLEAR < fees < CLEAR or -CLEAR < conversion < CLEAR:
            return -1
        eaten = (fees < 0) + 2 * (not converted)
        if (eaten or 3) == gap.eaten:
            if gap.recheck_ns != NEVER_NS:
                return -1
        elif now_ns >= gap.recheck_ns or gap.recheck_ns != gap.published_ns + self._reasons_min_ns:
            return -1
        gap._net_bps = net * 10_000
        return 1
