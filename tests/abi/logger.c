/*
 * A logger in the manner of xentoollog.h that keeps the lines. The library must write what it has to tell
 * to it, and to nothing else.
 */
#include "daemon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void logger_vmessage(xentoollog_logger *base, xentoollog_level level, int errnoval,
                            const char *context, const char *format, va_list arguments)
{
    struct logger *logger = (struct logger *)base;
    char *text = NULL;

    /* libxl says a lot that nobody wants to read here. */
    if (level < XTL_NOTICE)
        return;
    if (vasprintf(&text, format, arguments) < 0)
        abort();
    char *line = NULL;
    if (asprintf(&line, "%s: %s%s%s%s%s", xtl_level_to_string(level), context ? context : "",
                 context ? ": " : "", text, errnoval >= 0 ? ": " : "",
                 errnoval >= 0 ? strerror(errnoval) : "") < 0)
        abort();
    free(text);

    pthread_mutex_lock(&logger->mutex);
    logger->lines = realloc(logger->lines, (logger->count + 1) * sizeof(*logger->lines));
    if (!logger->lines)
        abort();
    logger->lines[logger->count++] = line;
    say(logger->name, "log: %s", line);
    pthread_mutex_unlock(&logger->mutex);
}

static void logger_destroy(xentoollog_logger *base)
{
    struct logger *logger = (struct logger *)base;

    logger_clear(logger);
    free(logger->lines);
    pthread_mutex_destroy(&logger->mutex);
    free(logger);
}

struct logger *logger_new(const char *name)
{
    struct logger *logger = calloc(1, sizeof(*logger));

    if (!logger)
        abort();
    logger->vtable.vmessage = logger_vmessage;
    logger->vtable.destroy = logger_destroy;
    logger->name = name;
    pthread_mutex_init(&logger->mutex, NULL);
    return logger;
}

void logger_free(struct logger *logger)
{
    xtl_logger_destroy(&logger->vtable);
}

static bool find(struct logger *logger, const char *level, const char *text)
{
    bool found = false;

    pthread_mutex_lock(&logger->mutex);
    for (size_t i = 0; i < logger->count && !found; i++) {
        const char *line = logger->lines[i];
        found = strncmp(line, level, strlen(level)) == 0 && strstr(line, text) != NULL;
    }
    pthread_mutex_unlock(&logger->mutex);
    return found;
}

bool logger_has_error(struct logger *logger, const char *text)
{
    return find(logger, xtl_level_to_string(XTL_ERROR), text);
}

bool logger_has(struct logger *logger, const char *text)
{
    return find(logger, xtl_level_to_string(XTL_WARN), text) ||
           find(logger, xtl_level_to_string(XTL_ERROR), text) ||
           find(logger, xtl_level_to_string(XTL_CRITICAL), text);
}

void logger_clear(struct logger *logger)
{
    pthread_mutex_lock(&logger->mutex);
    for (size_t i = 0; i < logger->count; i++)
        free(logger->lines[i]);
    logger->count = 0;
    pthread_mutex_unlock(&logger->mutex);
}
