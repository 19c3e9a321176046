/*
 * daemon [-s STORE] SCENARIO DOMAIN [DOMAIN]
 *
 * Runs one scenario against domains that run. Prints what happens, and exits with 0 if all was as it should
 * be; else it says what was not, and exits with 1.
 */
#include "daemon.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void say(const char *name, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    /* One call, so that lines of several threads do not mix. */
    printf("%s: %s\n", name, text);
    fflush(stdout);
}

void differs(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list arguments;

    fprintf(stderr, "%s:%d: not so: %s: ", file, line, condition);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    /* Other threads may be in the middle of something, which exit handlers could upset. */
    _exit(1);
}

const char *rc_name(int rc)
{
    return rc == 0 ? "0" : libxl_error_to_string(rc);
}

void expect_rc(const char *file, int line, int rc, int wanted, const char *what)
{
    if (rc != wanted)
        differs(file, line, what, "ended with %s (%d), not with %s", rc_name(rc), rc,
                rc_name(wanted));
}

static const struct scenario *const lists[] = {scenarios, managed_scenarios, pull_scenarios,
                                              process_scenarios};

static const struct scenario *find_scenario(const char *name)
{
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        for (const struct scenario *scenario = lists[i]; scenario->name; scenario++) {
            if (strcmp(scenario->name, name) == 0)
                return scenario;
        }
    }
    return NULL;
}

static _Noreturn void usage(void)
{
    fputs("usage: daemon [-s STORE] SCENARIO DOMAIN [DOMAIN]\n", stderr);
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        for (const struct scenario *scenario = lists[i]; scenario->name; scenario++)
            fprintf(stderr, "  %-10s %s\n", scenario->name, scenario->what);
    }
    exit(2);
}

int main(int argc, char **argv)
{
    struct arguments arguments = {0};
    int option;

    while ((option = getopt(argc, argv, "s:")) != -1) {
        if (option != 's')
            usage();
        arguments.store = optarg;
    }
    argv += optind;
    argc -= optind;
    const struct scenario *scenario = argc > 0 ? find_scenario(argv[0]) : NULL;
    if (!scenario || argc != 1 + scenario->domains)
        usage();
    arguments.domain = argv[1];
    arguments.other = scenario->domains > 1 ? argv[2] : NULL;
    scenario->run(&arguments);
    say("main", "%s: all as it should be", scenario->name);
    return 0;
}
