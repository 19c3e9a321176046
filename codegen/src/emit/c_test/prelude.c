/* What the file that is linked with this one provides; the functions below it may call. */
libxl_ctx *test_ctx_alloc(void);
void test_ctx_free(libxl_ctx *ctx);

uint64_t rand_bits(void);
unsigned test_rand(unsigned below);
uint64_t rand_integer(void);
void rand_bytes(void *p, size_t size);
char *rand_str(void);
char *rand_str_or_null(void);
void *rand_alloc(size_t count, size_t size);

/* What is being tested. */
static unsigned long seed;
static unsigned long this_round;
static const char *type;

static void fail(const char *what, const char *expected, const char *actual)
{
    fprintf(stderr, "%s: %s (seed %lu, round %lu)\n", type, what, seed, this_round);
    if (expected)
        fprintf(stderr, "--- expected\n%s\n", expected);
    if (actual)
        fprintf(stderr, "--- actual\n%s\n", actual);
    exit(1);
}

/* The same text, of which neither may be missing. */
static void check_same(const char *what, const char *expected, const char *actual)
{
    if (!expected || !actual || strcmp(expected, actual))
        fail(what, expected ? expected : "(null)", actual ? actual : "(null)");
}

static void check_true(const char *what, int condition, const char *text)
{
    if (!condition)
        fail(what, NULL, text);
}

/* Random values: a seed and a round make the same ones everywhere. */

static uint64_t rand_state;

static void rand_start(void)
{
    rand_state = ((uint64_t)seed << 32) + this_round;
}

uint64_t rand_bits(void)
{
    uint64_t bits = rand_state += 0x9e3779b97f4a7c15;

    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return bits ^ bits >> 31;
}

unsigned test_rand(unsigned below)
{
    return rand_bits() % below;
}

/* The extremes of all widths are as likely as everything else together. */
uint64_t rand_integer(void)
{
    uint64_t power = (uint64_t)1 << test_rand(64);

    switch (test_rand(6)) {
    case 0:
        return 0;
    case 1:
        return power;
    case 2:
        return power - 1;
    default:
        return rand_bits() >> test_rand(64);
    }
}

void rand_bytes(void *p, size_t size)
{
    unsigned char *bytes = p;

    while (size--)
        *bytes++ = rand_bits();
}

/* Zeroed memory, of which nothing need not be null. */
void *rand_alloc(size_t count, size_t size)
{
    void *memory;

    if (!count && test_rand(2))
        return NULL;
    memory = calloc(count ? count : 1, size);
    if (!memory)
        abort();
    return memory;
}

char *rand_str(void)
{
    static const char *const pieces[] = {
        "\"", "\\", "/", "'", "%s", " ", "\t", "\n", "\r", "\b", "\f", "\x01", "\x1b", "\x1f", "\x7f",
        "{", "}", "[", "]", ",", ":", "null", "true", "<default>", "-1", "1e9", "\\u0000", "\\ud800",
        "\xc2\x80", "\xc3\xa9", "\xdf\xbf", "\xe0\xa0\x80", "\xe2\x82\xac", "\xe2\x80\xa8", "\xed\x9f\xbf",
        "\xee\x80\x80", "\xef\xbb\xbf", "\xef\xbf\xbd", "\xf0\x90\x80\x80", "\xf0\x9f\x98\x80",
        "\xf4\x8f\xbf\xbf",
    };
    /* Seldom a long one, which does not fit into the first guess of any buffer. */
    size_t count = test_rand(32) ? test_rand(24) : 2000 + test_rand(2000);
    char *text = malloc(count * 16 + 1);
    char *end = text;

    if (!text)
        abort();
    while (count--) {
        if (test_rand(2)) {
            const char *piece = pieces[test_rand(sizeof(pieces) / sizeof(*pieces))];
            size_t length = strlen(piece);

            memcpy(end, piece, length);
            end += length;
        } else {
            *end++ = 'a' + test_rand(26);
        }
    }
    *end = 0;
    return text;
}

char *rand_str_or_null(void)
{
    return test_rand(4) ? rand_str() : NULL;
}

/* Texts that no parser may take, the number of which is WRONG_JSON. */

#define WRONG_JSON 12

static char *wrong_json(const char *text, unsigned index)
{
    static const char *const wrong[WRONG_JSON - 2] = {
        "", " ", "{", "[", "\"", "{\"", "{\"name\"", "{]", "nul", "{\"name\": \"\xff\"}",
    };
    char *copy;

    if (index < WRONG_JSON - 2)
        text = wrong[index];
    copy = malloc(strlen(text) + 3);
    if (!copy)
        abort();
    strcpy(copy, text);
    if (index == WRONG_JSON - 2) {
        /* It ends before the character that closes it, which is followed by a newline. */
        copy[test_rand(strlen(copy) - 1)] = 0;
    } else if (index == WRONG_JSON - 1) {
        strcat(copy, "}");
    }
    return copy;
}

/* The text with one character changed, which makes anything of it. */
static char *changed_json(const char *text)
{
    static const char likely[] = "\"\\{}[],:0123456789-+.eutfn \x80\xff";
    char *copy = strdup(text);

    if (!copy)
        abort();
    copy[test_rand(strlen(copy))] = likely[test_rand(sizeof(likely) - 1)];
    return copy;
}
