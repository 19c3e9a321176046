/*
 * What a C++ program sees: the header compiles as its first include, and what it declares links. Runs without
 * Xen.
 */
#include <libxl_ext.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

namespace {

int differences = 0;

void check(bool as_it_should_be, const char *what)
{
    if (!as_it_should_be) {
        std::cerr << "not so: " << what << '\n';
        differences++;
    }
}

void snapshots()
{
    libxl_domain_snapshot snapshot;

    /* Whatever was there before. */
    std::memset(&snapshot, 0xa5, sizeof(snapshot));
    libxl_domain_snapshot_init(&snapshot);
    check(!snapshot.name && !snapshot.description && !snapshot.memory_file, "no texts");
    check(!snapshot.disks && snapshot.num_disks == 0, "no disks");

    snapshot.name = strdup("name");
    snapshot.num_disks = 1;
    snapshot.disks = static_cast<libxl_disk_snapshot *>(std::calloc(1, sizeof(*snapshot.disks)));
    libxl_disk_snapshot_init(&snapshot.disks[0]);
    snapshot.disks[0].disk.vdev = strdup("xvda");
    snapshot.disks[0].name = strdup("of the disk");
    libxl_domain_snapshot_dispose(&snapshot);
    check(!snapshot.name && !snapshot.disks, "dispose leaves nothing");
    libxl_domain_snapshot_dispose(&snapshot);
    libxl_domain_snapshot_list_free(nullptr, 0);
}

void events()
{
    libxl_ext_event event;

    libxl_ext_event_init(&event);
    libxl_ext_event_init_type(&event, LIBXL_EXT_EVENT_TYPE_OPERATION_PROGRESS);
    event.u.operation_progress.step = strdup("step");
    libxl_ext_event_dispose(&event);
    libxl_ext_event_free(nullptr, nullptr);
}

void enumerations()
{
    libxl_snapshot_create flag = LIBXL_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
    libxl_ext_event_type type = LIBXL_EXT_EVENT_TYPE_OPERATION_COMPLETE;
    const char *text = libxl_ext_event_type_to_string(type);

    check(text && std::strcmp(text, "operation_complete") == 0, "to_string");
    check(libxl_snapshot_create_from_string("live", &flag) == 0 &&
              flag == LIBXL_DOMAIN_SNAPSHOT_CREATE_LIVE,
          "from_string");
    check(libxl_snapshot_create_from_string("dead", &flag) < 0, "from_string of an unknown name");
    check(std::strcmp(libxl_snapshot_delete_string_table[0].s, "children") == 0, "string table");
    check(!libxl_snapshot_delete_string_table[1].s, "the string table ends");
}

} // namespace

int main()
{
    snapshots();
    events();
    enumerations();
    return differences == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
