/* A CUDA driver with one device, of a host that the files in STUB_FOLDER describe: at first free_mb is free, then taken_mb less. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t bytes_in(const char *name) {
    char path[4096];
    size_t megabytes = 0;
    snprintf(path, sizeof path, "%s/%s", getenv("STUB_FOLDER"), name);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        fscanf(file, "%zu", &megabytes);
        fclose(file);
    }
    return megabytes * 1000000;
}

int cuInit(unsigned flags) { return bytes_in("free_mb") == 0 ? 100 : 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stub 1", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return context == NULL; }
int cuMemHostRegister_v2(void *memory, size_t bytes, unsigned flags) { return memory == NULL || bytes == 0; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    static int is_first = 1;
    *total_bytes = 2 * bytes_in("free_mb");
    *free_bytes = bytes_in("free_mb") - (is_first ? 0 : bytes_in("taken_mb"));
    is_first = 0;
    return 0;
}
